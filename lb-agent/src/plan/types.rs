//! What a plan is made of: the contract between the planner and `apply`.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use lb_common::layout::Class;
pub use lb_common::layout::{Algorithm, FrontendKind};
use serde::Serialize;

use crate::model::{Cidr, Family, ObjectName, Protocol, serialize_str};

/// Identity of one Service port in one family (S-10, S-04). Table indices are assigned per key and stay with it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ServicePortKey {
    /// The Service.
    pub service: ObjectName,
    /// Port name, `""` for the unnamed port.
    #[serde(serialize_with = "serialize_str")]
    pub port_name: Arc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address family.
    pub family: Family,
}

impl fmt::Display for ServicePortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        if !self.port_name.is_empty() {
            write!(f, ":{}", self.port_name)?;
        }
        write!(f, " {}", self.protocol)
    }
}

/// Everything wanted in the tables for one Service; no ports = nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePlan {
    /// The Service.
    pub service: ObjectName,
    /// Creation time, seconds since 1970: the older Service keeps a contested frontend, then the smaller name (S-83).
    pub created: Option<i64>,
    /// Its ports, sorted by key.
    pub ports: Vec<ServicePortPlan>,
    /// What the health check server says of it; `None` when the Service has none (S-61).
    pub health_check: Option<HealthCheckPlan>,
}

/// The answer of a Service's health check node port (S-61), which load balancers choose nodes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheckPlan {
    /// `spec.healthCheckNodePort`, host order.
    pub node_port: u16,
    /// Ready endpoints on this node with an IPv4 address: distinct addresses over all ports, 0 when the Service has no
    /// IPv4 cluster IP. Endpoints that only finish their flows do not count.
    pub local_v4: u32,
    /// The same with IPv6 addresses. An endpoint with both counts in each family once.
    pub local_v6: u32,
}

impl HealthCheckPlan {
    /// The number of ready local endpoints, as a load balancer that asks over `family` has to hear it.
    pub const fn local_endpoints(&self, family: Family) -> u32 {
        match family {
            Family::V4 => self.local_v4,
            Family::V6 => self.local_v6,
        }
    }
}

/// One Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortPlan {
    /// Identity.
    pub key: ServicePortKey,
    /// Endpoints worth a backend entry, sorted by address and port: every endpoint some class may choose, and
    /// every endpoint that still serves, so that its live UDP flows stay (S-51).
    pub endpoints: Vec<EndpointPlan>,
    /// What happens to traffic for the cluster IP.
    pub internal: ClassPlan,
    /// What happens to traffic for node port, load balancer VIPs and external IPs; `None` without such frontends.
    pub external: Option<ExternalPlan>,
    /// Seconds of client IP affinity, `None` for no affinity (S-40).
    pub affinity_timeout: Option<u32>,
    /// How new connections choose.
    pub algorithm: Algorithm,
}

impl ServicePortPlan {
    /// The verdict of a class; `None` when the port has no frontend that leads to it.
    pub fn verdict(&self, class: Class) -> Option<&Verdict> {
        match class {
            Class::Internal => Some(&self.internal.verdict),
            Class::External => self.external.as_ref().map(|external| &external.verdict),
            Class::Cluster => self.external.as_ref().map(|external| &external.inside),
        }
    }

    /// Every frontend, those of the cluster IPs first.
    pub fn frontends(&self) -> impl Iterator<Item = &Frontend> {
        let external = self.external.iter().flat_map(|external| &external.frontends);
        self.internal.frontends.iter().chain(external)
    }
}

/// One endpoint of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointPlan {
    /// Endpoint address.
    pub address: IpAddr,
    /// Endpoint port, host order.
    pub port: u16,
    /// True when it runs on this node (S-12).
    pub local: bool,
    /// Condition `serving`.
    pub serving: bool,
}

/// What happens at the cluster IPs of a Service port (2.4, class [`Class::Internal`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassPlan {
    /// The addresses and ports, sorted.
    pub frontends: Vec<Frontend>,
    /// The verdict for a new connection.
    pub verdict: Verdict,
}

/// What happens at the node port, load balancer VIPs and external IPs of a Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalPlan {
    /// The addresses and ports, sorted; never empty.
    pub frontends: Vec<Frontend>,
    /// The verdict for clients outside the node (class [`Class::External`]).
    pub verdict: Verdict,
    /// The verdict for pods and processes of this node (class [`Class::Cluster`]): the cluster's endpoints, whatever the
    /// traffic policies are (S-33 a, b).
    pub inside: Verdict,
    /// Clients outside keep their source address: external traffic policy Local (S-33 c).
    pub preserve_source: bool,
    /// The only sources that load balancer VIPs are for (S-34), sorted, none inside another; empty = everybody.
    pub source_ranges: Vec<Cidr>,
}

/// An address and port that clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontend {
    /// The address; unspecified (`0.0.0.0`, `::`) for a node port, which stands for the node's own addresses.
    pub address: IpAddr,
    /// The port, host order.
    pub port: u16,
    /// Which of the Service's fields it comes from.
    pub kind: FrontendKind,
}

/// Name of a kind of frontends, as in Service objects.
pub const fn kind_name(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "clusterIP",
        FrontendKind::ExternalIp => "externalIP",
        FrontendKind::LoadBalancer => "loadBalancer",
        FrontendKind::NodePort => "nodePort",
    }
}

/// What happens to a new connection (2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One of these endpoints, by [`ServicePortPlan::algorithm`]: ascending indices into [`ServicePortPlan::endpoints`], never empty.
    Balance(Vec<u32>),
    /// Answer with a port unreachable: no usable endpoint anywhere (S-21).
    Reject,
    /// Drop silently: endpoints exist, but policy is Local and none is here (S-22).
    Drop,
}

/// What one round of planning hands to `apply`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanBatch {
    /// True when `changes` is the whole wanted state: whatever is applied and not in it has to go (S-84).
    pub full: bool,
    /// The Services that changed, sorted by name, each at most once.
    pub changes: Vec<PlanChange>,
}

/// The new plan of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanChange {
    /// The Service.
    pub service: ObjectName,
    /// What is wanted now; `None` when the Service is gone.
    pub plan: Option<ServicePlan>,
    /// When the oldest event behind this change was received; `None` for a replan no event asked for.
    pub received: Option<Instant>,
}
