//! Which addresses and ports of a Service port belong to which traffic class (S-04, S-14).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::types::{Frontend, FrontendKind};
use crate::model::{Family, Service, ServicePort, ServiceType, TrafficPolicy};

/// Frontends of the internal class: the cluster IPs. Empty means that the family is not served at all.
pub(super) fn internal(service: &Service, port: &ServicePort, family: Family) -> Vec<Frontend> {
    let addresses = service.cluster_ips.iter().filter(|ip| Family::of(**ip) == family);
    let frontend = |ip: &IpAddr| Frontend { address: *ip, port: port.port, kind: FrontendKind::ClusterIp };
    let mut out: Vec<_> = addresses.map(frontend).collect();
    out.sort_unstable();
    out.dedup();
    out
}

/// Frontends of the external class: external IPs, load balancer VIPs, node port.
///
/// An address that is also a cluster IP stays in the internal class. One that is both an external IP and a load
/// balancer VIP counts as the VIP, because only for VIPs source ranges apply (S-34).
pub(super) fn external(service: &Service, port: &ServicePort, family: Family) -> Vec<Frontend> {
    let vips =
        service.ingress.iter().filter(|i| !i.proxy_mode).map(|i| (i.address, FrontendKind::LoadBalancer));
    let external_ips = service.external_ips.iter().map(|ip| (*ip, FrontendKind::ExternalIp));
    let mut out: Vec<_> = vips
        .chain(external_ips)
        .filter(|(ip, _)| {
            Family::of(*ip) == family && !ip.is_unspecified() && !service.cluster_ips.contains(ip)
        })
        .map(|(address, kind)| Frontend { address, port: port.port, kind })
        .collect();
    if port.node_port != 0 {
        let address = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        out.push(Frontend { address, port: port.node_port, kind: FrontendKind::NodePort });
    }
    // Stable, and VIPs were put first: of two kinds for one address the VIP stays.
    out.sort_by_key(|f| (f.address, f.port));
    out.dedup_by_key(|f| (f.address, f.port));
    out
}

/// True when the external traffic policy is Local and the Service is of a kind that the policy speaks of (S-14).
pub(super) fn external_policy_local(service: &Service) -> bool {
    let applies = match service.service_type {
        ServiceType::LoadBalancer | ServiceType::NodePort => true,
        ServiceType::ClusterIp => !service.external_ips.is_empty(),
        ServiceType::ExternalName => false,
    };
    applies && service.external_policy == TrafficPolicy::Local
}
