//! Rules in the shape of kube-proxy 1.36's iptables mode, in the order in which it writes them. Chains have shorter names, which
//! no packet meets, and counters of invalid packets (`nfacct`) are left out, as where the kernel lacks them.

use std::fmt::Write as _;

use super::Services;
use super::services::SERVER_PORTS;

const FILTER: &str = "*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";

const NAT: &str = "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
";

/// A Service port with its endpoints.
struct Port {
    name: String,
    vip: String,
    protocol: &'static str,
    endpoints: Vec<String>,
}

/// What `iptables-restore` takes; `pods` is the range of pods' addresses.
pub(super) fn rules(services: &Services, pods: &str) -> String {
    let mut ports: Vec<Port> = services
        .others()
        .map(|other| Port {
            name: format!("other-{}", other.number),
            vip: other.vip.to_string(),
            protocol: "tcp",
            endpoints: vec![format!("{}:8080", other.endpoint)],
        })
        .collect();
    ports.extend(["udp", "tcp"].map(|protocol| Port {
        name: format!("server-{protocol}"),
        vip: Services::MEASURED.ip().to_string(),
        protocol,
        endpoints: SERVER_PORTS.map(|port| format!("{}:{port}", services.server)).into(),
    }));
    let mut chains = String::from("*nat\n");
    for chain in ["KUBE-MARK-MASQ", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-SERVICES"] {
        chain_line(&mut chains, chain);
    }
    let (mut portals, mut rest) = (String::new(), String::new());
    for port in &ports {
        port.write(pods, &mut chains, &mut portals, &mut rest);
    }
    let last = "-A KUBE-SERVICES ! -d 127.0.0.0/8 -m comment --comment \"kubernetes service nodeports; NOTE: this must be the \
                last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n";
    [FILTER, &chains, NAT, &portals, &rest, last].concat()
}

fn chain_line(text: &mut String, chain: &str) {
    // Here and below: writing to a string does not fail.
    let _written = writeln!(text, ":{chain} - [0:0]");
}

impl Port {
    fn write(&self, pods: &str, chains: &mut String, portals: &mut String, rest: &mut String) {
        let Self { name, vip, protocol, endpoints } = self;
        let own = format!("KUBE-SVC-{}", name.to_uppercase());
        chain_line(chains, &own);
        let matched = format!(
            "-d {vip}/32 -p {protocol} -m comment --comment \"default/{name} cluster IP\" -m {protocol} --dport {}",
            Services::MEASURED.port()
        );
        let _written = writeln!(portals, "-A KUBE-SERVICES {matched} -j {own}");
        let _written = writeln!(rest, "-A {own} ! -s {pods} {matched} -j KUBE-MARK-MASQ");
        for (number, endpoint) in endpoints.iter().enumerate() {
            let chain = format!("KUBE-SEP-{}-{number}", name.to_uppercase());
            chain_line(chains, &chain);
            let left = endpoints.len() - number;
            let chance = if left > 1 {
                format!("-m statistic --mode random --probability {:.11} ", 1.0 / left as f64)
            } else {
                String::new()
            };
            let comment = format!("-m comment --comment \"default/{name} -> {endpoint}\"");
            let _written = writeln!(rest, "-A {own} {comment} {chance}-j {chain}");
            let address = endpoint.split(':').next().unwrap_or_default();
            let comment = format!("-m comment --comment \"default/{name}\"");
            let _written = writeln!(rest, "-A {chain} -s {address}/32 {comment} -j KUBE-MARK-MASQ");
            let _written = writeln!(
                rest,
                "-A {chain} -p {protocol} {comment} -m {protocol} -j DNAT --to-destination {endpoint}"
            );
        }
    }
}
