//! The agent: watches Services and EndpointSlices, plans, and keeps the kernel's tables.

pub mod model;
pub mod plan;
