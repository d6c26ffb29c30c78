//! A Service, reduced to what S-14 lists.

use std::net::IpAddr;
use std::sync::Arc;

use lb_common::layout::Algorithm;

use super::{Cidr, Few, ObjectName, Protocol, Rare};

/// A Service as the planner needs it. The reduction applies no skip rule: S-03 and S-04 are the planner's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.creationTimestamp`, seconds since 1970; decides between duplicate frontends (S-83).
    pub created: Option<i64>,
    /// `spec.type`.
    pub service_type: ServiceType,
    /// All cluster IPs that parse, first one first; empty for headless Services (S-03).
    pub cluster_ips: Few<IpAddr>,
    /// External IPs that parse.
    pub external_ips: Rare<IpAddr>,
    /// `status.loadBalancer.ingress` entries with an address.
    pub ingress: Rare<IngressAddress>,
    /// The ports, in the object's order.
    pub ports: Few<ServicePort>,
    /// Session affinity by client IP, with its timeout in seconds; `None` without affinity (S-40).
    pub affinity_timeout: Option<u32>,
    /// How new connections choose an endpoint: the annotation `lb-agent/load-balancing`, absent = the agent's default.
    pub algorithm: Algorithm,
    /// `spec.internalTrafficPolicy`, absent = Cluster.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`, absent = Cluster.
    pub external_policy: TrafficPolicy,
    /// `spec.loadBalancerSourceRanges` of both families; an entry that cannot be read admits nobody.
    pub source_ranges: Rare<Cidr>,
    /// `spec.healthCheckNodePort`, 0 when unset.
    pub health_check_node_port: u16,
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Port name, `""` for the unnamed port of a single-port Service (S-10).
    pub name: Arc<str>,
    /// Transport protocol, absent = TCP.
    pub protocol: Protocol,
    /// The Service's port, host order.
    pub port: u16,
    /// The node port, 0 when there is none (S-82).
    pub node_port: u16,
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceType {
    /// ClusterIP, the default.
    ClusterIp,
    /// NodePort.
    NodePort,
    /// LoadBalancer.
    LoadBalancer,
    /// ExternalName: never proxied, even with a cluster IP set (S-03).
    ExternalName,
}

/// `Cluster` or `Local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Every endpoint of the cluster.
    Cluster,
    /// Only endpoints on this node.
    Local,
}

/// One load balancer ingress address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IngressAddress {
    /// The address.
    pub address: IpAddr,
    /// True for `ipMode: Proxy`: the load balancer delivers to the node itself and the address is not ours (S-14).
    pub proxy_mode: bool,
}
