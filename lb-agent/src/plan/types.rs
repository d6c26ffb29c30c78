//! What a plan is made of: the contract between the planner and `apply`.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::model::{Family, ObjectName, Protocol, serialize_str};

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServicePlan {
    /// The Service.
    pub service: ObjectName,
    /// Creation time, seconds since 1970: the older Service keeps a contested frontend, then the smaller name (S-83).
    pub created: Option<i64>,
    /// Its ports, sorted by key.
    pub ports: Vec<ServicePortPlan>,
}

/// One Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServicePortPlan {
    /// Identity.
    pub key: ServicePortKey,
    /// Endpoints worth a backend entry, sorted by address and port: every endpoint some class may choose, and
    /// every endpoint that still serves, so that its live UDP flows stay (S-51).
    pub endpoints: Vec<EndpointPlan>,
    /// What happens to traffic for the cluster IP.
    pub internal: ClassPlan,
    /// What happens to traffic for node port, load balancer VIPs and external IPs; `None` without such frontends.
    pub external: Option<ClassPlan>,
    /// Seconds of client IP affinity, `None` for no affinity (S-40).
    pub affinity_timeout: Option<u32>,
}

/// One endpoint of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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

/// One traffic class of a Service port (2.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassPlan {
    /// The addresses and ports that belong to the class, sorted.
    pub frontends: Vec<Frontend>,
    /// The verdict for a new connection.
    pub verdict: Verdict,
}

/// An address and port that clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Frontend {
    /// The address; unspecified (`0.0.0.0`, `::`) for a node port, which stands for the node's own addresses.
    pub address: IpAddr,
    /// The port, host order.
    pub port: u16,
    /// Which of the Service's fields it comes from.
    pub kind: FrontendKind,
}

/// Where a frontend comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
    /// `spec.ports[].nodePort`.
    NodePort,
}

/// What happens to a new connection (2.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// One of these endpoints, uniformly: ascending indices into [`ServicePortPlan::endpoints`], never empty.
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
