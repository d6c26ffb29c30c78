//! How pods are connected to their node, and nodes to each other: what a CNI plugin and a network do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::{
    cidr::Cidr,
    config::{Config, Shape},
    process::{self, Surroundings},
};
use crate::netns::{
    Namespace,
    links::{Mac, VethEnd},
    write_sysctl,
};

/// Index of `eth0`, on nodes, pods and clients alike.
pub(crate) const ETH0: u32 = 2;
/// Index of a node's `cni0`.
const CNI0: u32 = 3;
/// First index of a node's pod devices.
pub(crate) const FIRST_POD_DEVICE: u32 = 10;
/// Index of the switch.
pub(crate) const SWITCH: u32 = 2;

/// The MAC address of every host-side device of the routed shape.
const CALI_MAC: Mac = [0xee; 6];
/// The IPv4 gateway of every pod of the routed shape.
const LINK_LOCAL_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The IPv6 gateway: the link-local address that `CALI_MAC` gives the host-side device.
const LINK_LOCAL_GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

const HARDENED_V6: [(&str, &str); 6] = [
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/all/router_solicitations", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
];

/// Sysctls of a node and of the switch: routers without strict source checks on all devices (Calico makes its own
/// devices strict), and with the distributions' loose mode as default.
pub(crate) fn router_sysctls() -> Vec<(&'static str, &'static str)> {
    let mut sysctls = vec![
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "2"),
        ("net/ipv4/ping_group_range", "0 2147483647"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv6/conf/default/forwarding", "1"),
    ];
    sysctls.extend(HARDENED_V6);
    sysctls
}

/// Sysctls of a pod or client: a plain host whose processes need no privileges for low ports and ping, as container
/// runtimes set it up.
pub(crate) fn host_sysctls() -> Vec<(&'static str, &'static str)> {
    let mut sysctls = vec![
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/ip_unprivileged_port_start", "0"),
        ("net/ipv4/ping_group_range", "0 2147483647"),
    ];
    sysctls.extend(HARDENED_V6);
    sysctls
}

/// Sysctls of a host outside the cluster. It stands for routers and load balancers, which take no routes from ICMP: a node
/// that does not serve an address (yet) forwards what is sent to it, and tells the sender of a shorter way (RFC 792).
pub(crate) fn outside_sysctls() -> Vec<(&'static str, &'static str)> {
    let mut sysctls = host_sysctls();
    sysctls.extend([
        ("net/ipv4/conf/all/accept_redirects", "0"),
        ("net/ipv4/conf/default/accept_redirects", "0"),
        ("net/ipv6/conf/all/accept_redirects", "0"),
        ("net/ipv6/conf/default/accept_redirects", "0"),
    ]);
    sysctls
}

/// A MAC address of the lab's own, locally administered: kind of device, then a number.
pub(crate) fn mac(kind: u8, number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    [0x0a, kind, a, b, c, d]
}

/// The device of a pod as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// Interface index in the node's namespace.
    pub index: u32,
    /// Name in the node's namespace (`cali…`, `veth…`).
    pub name: String,
    /// MAC address of the node's end.
    pub mac: [u8; 6],
    /// MAC address of the pod's end.
    pub pod_mac: [u8; 6],
}

impl HostDevice {
    /// The device for the pod that gets interface `index` on its node.
    pub(crate) fn plan(shape: Shape, node: u32, index: u32, pod: &str) -> Self {
        // FNV-1a: the name only has to look like a CNI plugin's and differ from the others.
        let hash = pod
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let (name, mac) = match shape {
            Shape::Routed => (format!("cali{hash:08x}{:03x}", index & 0xfff), CALI_MAC),
            Shape::Bridged => {
                (format!("veth{:04x}{:04x}", hash & 0xffff, index & 0xffff), mac(4, node << 16 | index))
            }
        };
        Self { index, name, mac, pod_mac: mac_of_pod(node, index) }
    }
}

fn mac_of_pod(node: u32, index: u32) -> Mac {
    mac(5, node << 16 | index)
}

/// Connects a pod's namespace to its node.
pub(crate) async fn connect_pod(
    shape: Shape,
    mtu: u32,
    node: Namespace,
    pod: Namespace,
    device: HostDevice,
    addresses: Vec<IpAddr>,
    ranges: Vec<Cidr>,
) -> anyhow::Result<()> {
    let (host, inside) = (node.links(), pod.links());
    let HostDevice { index, name, mac, pod_mac } = device;
    let bridge = (shape == Shape::Bridged).then_some(CNI0);
    let near = VethEnd { name: &name, index, mac, bridge };
    let far = VethEnd { name: "eth0", index: ETH0, mac: pod_mac, bridge: None };
    host.add_veth(near, far, &pod, mtu).await?;
    match shape {
        Shape::Routed => {
            let sysctls = [
                format!("net/ipv4/conf/{name}/rp_filter=1"),
                format!("net/ipv4/conf/{name}/proxy_arp=1"),
                format!("net/ipv4/neigh/{name}/proxy_delay=0"),
                format!("net/ipv6/conf/{name}/proxy_ndp=1"),
            ];
            node.run(async move { write_all(&sysctls) }).await?;
            for address in &addresses {
                let (full, gateway) = if address.is_ipv4() {
                    (32, IpAddr::V4(LINK_LOCAL_GATEWAY))
                } else {
                    (128, IpAddr::V6(LINK_LOCAL_GATEWAY6))
                };
                inside.add_address(ETH0, *address, full).await?;
                if gateway.is_ipv6() {
                    // The kernel gives it by itself, but only some time after the device came up.
                    host.add_address(index, gateway, 64).await?;
                    node.wait_local(gateway, &name).await?;
                } else {
                    inside.add_neighbour(ETH0, gateway, mac).await?;
                    inside.add_route(gateway, full, None, ETH0).await?;
                }
                inside.add_route(any_like(gateway), 0, Some(gateway), ETH0).await?;
                host.add_route(*address, full, None, index).await?;
            }
        }
        Shape::Bridged => {
            host.hairpin(index).await?;
            for address in &addresses {
                let Some(range) = ranges.iter().find(|range| range.is_ipv4() == address.is_ipv4()) else {
                    anyhow::bail!("{address} is of no family of this lab");
                };
                let gateway = range.nth(1);
                inside.add_address(ETH0, *address, range.length()).await?;
                inside.add_route(any_like(gateway), 0, Some(gateway), ETH0).await?;
                // As the bridge plugin announces a new pod: its address may have been another one's a moment ago.
                host.hear_of(CNI0, *address, pod_mac).await?;
            }
        }
    }
    host.wait_up(index).await?;
    inside.wait_up(ETH0).await?;
    for address in addresses {
        pod.wait_local(address, "eth0").await?;
    }
    Ok(())
}

/// How long `ethtool` may take.
const ETHTOOL: Duration = Duration::from_secs(5);

/// Switches offloads of a device (`ethtool -K`).
pub(crate) fn offloads(namespace: &Namespace, device: &str, settings: &[&str]) -> anyhow::Result<()> {
    let argv: Vec<String> =
        ["ethtool", "-K", device].iter().chain(settings).map(|argument| (*argument).to_owned()).collect();
    let command = process::command(namespace, &Surroundings::default(), &argv, &[])?;
    let output = namespace.block_on(process::output(command, ETHTOOL))?;
    anyhow::ensure!(
        output.status.success(),
        "{}: {}",
        argv.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Makes what pods are connected to, before the first one comes.
pub(crate) async fn prepare_node(
    config: &Config,
    node: &Namespace,
    number: u32,
    ranges: &[Cidr],
) -> anyhow::Result<()> {
    if config.shape == Shape::Bridged {
        let links = node.links();
        links.add_bridge("cni0", CNI0, mac(3, number), config.mtu).await?;
        for range in ranges {
            links.add_address(CNI0, range.nth(1), range.length()).await?;
            node.wait_local(range.nth(1), "cni0").await?;
        }
    }
    Ok(())
}

/// Gives `eth0` of a node or client its addresses and the default routes.
pub(crate) async fn address_eth0(
    namespace: &Namespace,
    addresses: &[IpAddr],
    ranges: &[Cidr],
) -> anyhow::Result<()> {
    let links = namespace.links();
    for (address, range) in addresses.iter().zip(ranges) {
        links.add_address(ETH0, *address, range.length()).await?;
        let router = range.nth(1);
        links.add_route(any_like(router), 0, Some(router), ETH0).await?;
        namespace.wait_local(*address, "eth0").await?;
    }
    Ok(())
}

/// `0.0.0.0` or `::`, of the family of `address`.
pub(crate) fn any_like(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn write_all(sysctls: &[String]) -> anyhow::Result<()> {
    sysctls
        .iter()
        .filter_map(|setting| setting.split_once('='))
        .try_for_each(|(key, value)| write_sysctl(key, value))
}
