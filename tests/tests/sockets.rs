//! Processes of a node, and pods: their connections are translated when they are made (`--socket-lb`).

#[path = "sockets/cluster_ips.rs"]
mod cluster_ips;
#[path = "sockets/common.rs"]
mod common;
