//! The lab: nodes and pods as network namespaces on one kernel, an API server, controllers, DNS and workloads.
//!
//! Tests, the demo and the benchmarks stand on it. Making namespaces needs root.

pub mod datapath;
pub mod runtime;
pub mod lab;
pub mod netns;
pub mod workload;
pub mod apiserver;
pub mod replay;
pub mod controllers;
pub mod dns;
pub mod cluster;
pub mod demo;
