//! The agent: watches Services and EndpointSlices, plans, and keeps the kernel's tables.

pub mod index;
pub mod k8s;
pub mod model;
pub mod plan;
