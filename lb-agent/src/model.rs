//! The domain: what the agent keeps of Kubernetes objects, free of any Kubernetes type.
//!
//! `k8s` and `manifests` produce these values, `index` stores them, `plan` reads them.

mod cidr;
mod endpoint;
mod hash;
mod list;
mod name;
mod node;
mod service;

pub use cidr::Cidr;
pub use endpoint::{Conditions, Endpoint, EndpointPort, EndpointSlice, SliceName};
pub use hash::{KeyHash, Keyed, KeyedMap, KeyedSet, Numbers};
pub use list::{Few, Rare};
pub(crate) use name::serialize_str;
pub use name::{Family, ObjectName, Protocol};
pub use node::NodeFacts;
pub use service::{IngressAddress, Service, ServicePort, ServiceType, TrafficPolicy};
