//! Processes of a node, and pods: their connections are translated when they are made (`--socket-lb`).

#[path = "sockets/agents.rs"]
mod agents;
#[path = "sockets/cluster_ips.rs"]
mod cluster_ips;
#[path = "sockets/common.rs"]
mod common;
#[path = "sockets/datagrams.rs"]
mod datagrams;
#[path = "sockets/direct.rs"]
mod direct;
#[path = "sockets/frontends.rs"]
mod frontends;
#[path = "sockets/kernels.rs"]
mod kernels;
#[path = "sockets/pods.rs"]
mod pods;
#[path = "sockets/refusals.rs"]
mod refusals;
