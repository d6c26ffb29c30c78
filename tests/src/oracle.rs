//! What Kubernetes promises of one Service, worked out slowly.
//!
//! A model to compare the real thing with: it reads the objects as the API server stores them and follows the rules one
//! after the other, for one connection at a time, without tables, indices or caches. It shares no code with the agent, so
//! that the two agree only where both are right.
//!
//! ```
//! use lb_tests::oracle::{Attempt, Client, Machine, Transport, Verdict, World, answer};
//! use serde_json::json;
//!
//! let service = json!({
//!     "metadata": {"name": "web", "namespace": "shop"},
//!     "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": [{"port": 80}]},
//! });
//! let machines = [Machine { name: "n1".into(), zone: None, addresses: vec!["172.18.0.11".parse().unwrap()] }];
//! let world = World { service: &service, slices: &[], machines: &machines };
//! let from = Client::Pod { node: "n1".into(), address: "10.244.1.2".parse().unwrap() };
//! let attempt = Attempt { from, to: "10.96.0.7:80".parse().unwrap(), transport: Transport::Tcp };
//! assert_eq!(answer(&world, &attempt), Verdict::Refused);
//! ```
//!
//! [`pairwise`] chooses the combinations that are worth comparing.

mod endpoints;
mod frontends;
mod object;
pub mod pairwise;
#[cfg(test)]
mod planner_tests;
mod ranges;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde_json::Value;

pub use endpoints::{Endpoint, Lists, lists};
pub use frontends::{Frontend, PortName, frontend};

/// Transport protocol of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP; a connection is what one socket sends to one address.
    Udp,
}

impl Transport {
    /// As Kubernetes objects write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its zone, when it has one.
    pub zone: Option<String>,
    /// The addresses it has on the network, which node ports are served on.
    pub addresses: Vec<IpAddr>,
}

/// The objects, and the nodes they are used on.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// A Service, as the API server stores it.
    pub service: &'a Value,
    /// EndpointSlices, as the API server stores them; those of other Services are ignored.
    pub slices: &'a [Value],
    /// All nodes.
    pub machines: &'a [Machine],
}

/// Who opens a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Client {
    /// A pod with a network of its own.
    Pod {
        /// The node it runs on.
        node: String,
        /// Its address.
        address: IpAddr,
    },
    /// A process of a node itself, a pod with `hostNetwork` included.
    Host {
        /// The node.
        node: String,
        /// The node's address, of the family in question.
        address: IpAddr,
    },
    /// A host that is no part of the cluster.
    Outside {
        /// The node its packets are routed to first.
        through: String,
        /// Its address.
        address: IpAddr,
    },
}

/// One new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Who opens it.
    pub from: Client,
    /// Where to.
    pub to: SocketAddr,
    /// By which protocol.
    pub transport: Transport,
}

/// What becomes of a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The client is told at once: port unreachable, which applications see as "connection refused" (S-21).
    Refused,
    /// Nothing comes back (S-22).
    Dropped,
    /// It is no connection to this Service: it goes where it would go without any (S-37).
    Untouched,
    /// One of these endpoints answers, each as likely as the others (S-41).
    Reaches {
        /// The endpoints, and which client each would see.
        endpoints: BTreeMap<SocketAddr, Source>,
        /// Seconds for which the same client keeps coming back to the same endpoint (S-40).
        sticky: Option<u64>,
    },
}

/// The client an endpoint sees.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The client's own address.
    Client,
    /// An address of this node.
    Node(String),
    /// Any address but its own: the endpoint is the client itself, which could not tell the answer from a packet of its
    /// own (S-31).
    NotItself,
}

/// The way a connection arrives at a node that has to decide about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    /// From a pod of this node.
    LocalPod(IpAddr),
    /// From a process of this node.
    Host,
    /// From the network: other nodes, their pods, and everyone else.
    Network(IpAddr),
}

/// What becomes of a connection.
///
/// # Panics
/// The attempt names a node that is none of the world's.
pub fn answer(world: &World<'_>, attempt: &Attempt) -> Verdict {
    let (first, arrival, address) = match &attempt.from {
        Client::Pod { node, address } => (node, Arrival::LocalPod(*address), *address),
        Client::Host { node, address } => (node, Arrival::Host, *address),
        Client::Outside { through, address } => (through, Arrival::Network(*address), *address),
    };
    let first = machine(world, first);
    let verdict = decide(world, first, arrival, attempt);
    // A node does not judge what is addressed to another one: the packet travels on, and is judged there.
    let owner = world.machines.iter().find(|it| it.addresses.contains(&attempt.to.ip()));
    match owner {
        Some(owner) if verdict == Verdict::Untouched && owner.name != first.name => {
            decide(world, owner, Arrival::Network(address), attempt)
        }
        _ => verdict,
    }
}

fn machine<'a>(world: &World<'a>, name: &str) -> &'a Machine {
    let found = world.machines.iter().find(|machine| machine.name == name);
    found.unwrap_or_else(|| panic!("the world has no node {name}"))
}

/// What one node makes of a connection that arrives there.
fn decide(world: &World<'_>, here: &Machine, arrival: Arrival, attempt: &Attempt) -> Verdict {
    let from_host = arrival == Arrival::Host;
    let found = frontend(world.service, here, from_host, attempt.to, attempt.transport);
    let (kind, port) = match found {
        Frontend::None => return Verdict::Untouched,
        // S-23: the cluster IP is the Service's alone, a port that it does not have is closed.
        Frontend::UnknownPort => return Verdict::Refused,
        Frontend::ClusterIp(port) => (Kind::Internal, port),
        Frontend::NodePort(port) | Frontend::ExternalIp(port) => (Kind::External, port),
        Frontend::LoadBalancer(port) => {
            // S-34: before anything else, and for load balancer addresses alone.
            let allowed = match arrival {
                Arrival::LocalPod(address) | Arrival::Network(address) => {
                    ranges::allows(world.service, address)
                }
                Arrival::Host => ranges::allows_host(world.service, here, attempt.to.is_ipv4()),
            };
            if !allowed {
                return Verdict::Dropped;
            }
            (Kind::External, port)
        }
    };
    let lists = lists(world, here, &port, attempt.to.is_ipv4());
    // 2.4, first line: nobody anywhere could answer.
    if !lists.has_any {
        return Verdict::Refused;
    }
    let node = || Source::Node(here.name.clone());
    let (chosen, source) = match (kind, arrival) {
        // S-30: whoever is no pod of this node gets its answer through this node. A process's packets are the node's
        // anyway.
        (Kind::Internal, _) => {
            let local_only = object::is_local(world.service, "/spec/internalTrafficPolicy");
            let chosen = if local_only { lists.local } else { lists.cluster };
            (chosen, if matches!(arrival, Arrival::LocalPod(_)) { Source::Client } else { node() })
        }
        // S-33: with policy Cluster the answer comes back through this node, which puts itself into the client's place.
        (Kind::External, _) if !frontends::external_policy_local(world.service) => (lists.cluster, node()),
        // S-33 a, b: who is inside the cluster may use all of its endpoints.
        (Kind::External, Arrival::LocalPod(_)) => (lists.cluster, Source::Client),
        (Kind::External, Arrival::Host) => (lists.cluster, node()),
        // S-33 c: whoever comes from the network gets this node's endpoints, and is seen as who it is.
        (Kind::External, Arrival::Network(_)) => (lists.local, Source::Client),
    };
    if chosen.is_empty() {
        // There are endpoints, only not for this connection (S-22).
        return Verdict::Dropped;
    }
    let seen_by = |endpoint: &SocketAddr| match arrival {
        // S-31.
        Arrival::LocalPod(own) if own == endpoint.ip() => Source::NotItself,
        _ => source.clone(),
    };
    Verdict::Reaches {
        endpoints: chosen.iter().map(|endpoint| (*endpoint, seen_by(endpoint))).collect(),
        sticky: object::affinity_seconds(world.service),
    }
}

/// The two sides of 2.4's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Internal,
    External,
}
