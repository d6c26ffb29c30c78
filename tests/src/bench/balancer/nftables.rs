//! Rules in the shape of kube-proxy 1.36's nftables mode. Chains have shorter names, which no packet meets.

use std::fmt::Write as _;

use super::Services;
use super::services::SERVER_PORTS;

const HEAD: &str = r#"table ip kube-proxy {
    set nodeport-ips { type ipv4_addr; }
    map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
    map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
    map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
    map service-nodeports { type inet_proto . inet_service : verdict; }
    chain filter-prerouting-pre-dnat {
        type filter hook prerouting priority -110; policy accept;
        ct state new jump firewall-check
    }
    chain filter-output-pre-dnat {
        type filter hook output priority -110; policy accept;
        ct state new jump firewall-check
    }
    chain filter-input {
        type filter hook input priority 0; policy accept;
        ct state new jump nodeport-endpoints-check
        ct state new jump service-endpoints-check
    }
    chain filter-forward {
        type filter hook forward priority 0; policy accept;
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
    }
    chain filter-output {
        type filter hook output priority 0; policy accept;
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
    }
    chain nat-prerouting {
        type nat hook prerouting priority -100; policy accept;
        jump services
    }
    chain nat-output {
        type nat hook output priority -100; policy accept;
        jump services
    }
    chain nat-postrouting {
        type nat hook postrouting priority 100; policy accept;
        jump masquerading
    }
    chain nodeport-endpoints-check {
        ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
    }
    chain service-endpoints-check {
        ip daddr . meta l4proto . th dport vmap @no-endpoint-services
    }
    chain firewall-check {
        ip daddr . meta l4proto . th dport vmap @firewall-ips
    }
    chain masquerading {
        meta mark & 0x00004000 != 0x00000000 meta mark set meta mark ^ 0x00004000 masquerade fully-random
        ct status dnat ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
    }
    chain cluster-ips-check {
        ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"
        ip daddr 10.96.0.0/12 drop comment "Drop traffic to unallocated ClusterIPs"
    }
"#;

/// What `nft -f` takes; `pods` is the range of pods' addresses.
pub(super) fn rules(services: &Services, pods: &str) -> String {
    let (mut vips, mut portals, mut hairpins) = (Vec::new(), Vec::new(), Vec::new());
    let mut chains = String::new();
    let port = Services::MEASURED.port();
    for other in services.others() {
        let (number, vip, endpoint) = (other.number, other.vip, other.endpoint);
        vips.push(vip.to_string());
        portals.push(format!("{vip} . tcp . {port} : goto service-other-{number}"));
        // Writing to a string does not fail.
        let _written = writeln!(
            chains,
            "    chain service-other-{number} {{ meta l4proto tcp dnat ip to numgen random mod 1 map {{ 0 : {endpoint} . 8080 }}; }}"
        );
    }
    let (vip, server) = (Services::MEASURED.ip(), services.server);
    vips.push(vip.to_string());
    for protocol in ["udp", "tcp"] {
        portals.push(format!("{vip} . {protocol} . {port} : goto service-server-{protocol}"));
        let ends: Vec<String> = SERVER_PORTS
            .iter()
            .enumerate()
            .map(|(number, port)| format!("{number} : {server} . {port}"))
            .collect();
        let _written = writeln!(
            chains,
            "    chain service-server-{protocol} {{ meta l4proto {protocol} dnat ip to numgen random mod {} map {{ {} }}; }}",
            SERVER_PORTS.len(),
            ends.join(", ")
        );
        hairpins.extend(SERVER_PORTS.map(|port| format!("{server} . {server} . {protocol} . {port}")));
    }
    format!(
        "{HEAD}    set hairpin-connections {{\n        type ipv4_addr . ipv4_addr . inet_proto . inet_service\n        \
         elements = {{ {} }}\n    }}\n    set cluster-ips {{\n        type ipv4_addr\n        elements = {{ {} }}\n    }}\n\
         {chains}    map service-ips {{\n        type ipv4_addr . inet_proto . inet_service : verdict\n        \
         elements = {{ {} }}\n    }}\n    chain services {{\n        ip daddr @cluster-ips ip saddr != {pods} meta mark set \
         meta mark | 0x00004000\n        ip daddr . meta l4proto . th dport vmap @service-ips\n        ip daddr \
         @nodeport-ips meta l4proto . th dport vmap @service-nodeports\n    }}\n}}\n",
        hairpins.join(", "),
        vips.join(", "),
        portals.join(", "),
    )
}
