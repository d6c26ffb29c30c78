//! What an address and port means to a node (S-03, S-04, S-14, S-35 to S-37).

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::{Machine, Transport, object};

/// Name and protocol of a Service's port, which its endpoints are found by (S-10, S-11).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortName {
    /// The name; empty for the only port of a Service.
    pub name: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
}

/// Which of a Service's ways in a destination is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frontend {
    /// None of them.
    None,
    /// Its cluster IP, but none of its ports.
    UnknownPort,
    /// Its cluster IP.
    ClusterIp(PortName),
    /// A node port.
    NodePort(PortName),
    /// One of its external IPs.
    ExternalIp(PortName),
    /// An address that its load balancer gave it.
    LoadBalancer(PortName),
}

/// What a destination means on a node, to its own processes (`from_host`) or to others.
pub fn frontend(
    service: &Value,
    here: &Machine,
    from_host: bool,
    to: SocketAddr,
    transport: Transport,
) -> Frontend {
    let (ip, ipv4) = (to.ip(), to.is_ipv4());
    // S-03: such a Service has no traffic of its own, whatever else it says.
    if object::text(service, "/spec/type") == "ExternalName" {
        return Frontend::None;
    }
    // S-03, S-04: a family without a cluster IP (also: with `None` or an empty one) is not served.
    let cluster_ips = object::cluster_ips(service, ipv4);
    if cluster_ips.is_empty() {
        return Frontend::None;
    }
    if cluster_ips.contains(&ip) {
        let port = port_where(service, transport, "/port", to.port());
        return port.map_or(Frontend::UnknownPort, Frontend::ClusterIp);
    }
    if vips(service, ipv4).contains(&ip) {
        // S-37: its other ports are not the Service's.
        let port = port_where(service, transport, "/port", to.port());
        return port.map_or(Frontend::None, Frontend::LoadBalancer);
    }
    if object::addresses(service, "/spec/externalIPs", ipv4).contains(&ip) {
        let port = port_where(service, transport, "/port", to.port());
        return port.map_or(Frontend::None, Frontend::ExternalIp);
    }
    // S-35, S-36: node ports are served on the node's own addresses, loopback being the node's own to its processes only.
    if here.addresses.contains(&ip) || (from_host && ip.is_loopback()) {
        let port = port_where(service, transport, "/nodePort", to.port());
        return port.map_or(Frontend::None, Frontend::NodePort);
    }
    Frontend::None
}

/// The port of a Service that has this number in this field, with this protocol.
fn port_where(service: &Value, transport: Transport, field: &str, number: u16) -> Option<PortName> {
    let ports = object::items(service, "/spec/ports");
    let found = ports.iter().find(|port| {
        object::protocol(port) == transport.name() && object::port(port, field) == Some(number)
    })?;
    Some(PortName {
        name: object::text(found, "/name").to_owned(),
        protocol: object::protocol(found).to_owned(),
    })
}

/// The load balancer addresses of one family that nodes are to serve: not those whose load balancer says that it delivers
/// to the nodes itself (S-14).
pub(super) fn vips(service: &Value, ipv4: bool) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for ingress in object::items(service, "/status/loadBalancer/ingress") {
        let ours = object::text(ingress, "/ipMode") != "Proxy";
        let address = object::address(object::text(ingress, "/ip"));
        addresses.extend(address.filter(|address| ours && address.is_ipv4() == ipv4));
    }
    addresses
}

/// Whether the external traffic policy is Local and the Service of a type that has one (S-14).
pub(super) fn external_policy_local(service: &Value) -> bool {
    let has_one = match object::text(service, "/spec/type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" | "" => !object::items(service, "/spec/externalIPs").is_empty(),
        _ => false,
    };
    has_one && object::is_local(service, "/spec/externalTrafficPolicy")
}
