//! The planner: a pure function from a Service, its slices and the node's facts to wanted table content.
//!
//! Same input, same plan, byte for byte: endpoints and frontends come out sorted.

mod types;

pub use types::{
    ClassPlan, EndpointPlan, Frontend, FrontendKind, PlanBatch, PlanChange, ServicePlan, ServicePortKey,
    ServicePortPlan, Verdict,
};
