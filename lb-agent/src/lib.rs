//! The agent: watches Services and EndpointSlices, plans, and keeps the kernel's tables.

pub mod app;
pub mod apply;
pub mod bundle;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod explain;
pub mod health;
pub mod index;
pub mod k8s;
pub mod live;
pub mod metrics;
pub mod model;
pub mod net;
pub mod observe;
pub mod options;
pub mod plan;
pub mod serve;
pub mod status;
