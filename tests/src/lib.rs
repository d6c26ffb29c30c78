//! The lab: nodes and pods as network namespaces on one kernel, an API server, controllers, DNS and workloads.
//!
//! Tests, the demo and the benchmarks stand on it. Making namespaces needs root.

pub mod apiserver;
pub mod bench;
pub mod cluster;
pub mod controllers;
pub mod datapath;
pub mod demo;
pub mod dns;
pub mod lab;
pub mod model;
pub mod netns;
pub mod oracle;
pub mod replay;
pub mod runtime;
pub mod sockets;
pub mod workload;
