//! Layout of every table: what lies where, in words of 64 bits. The one source for programs, agent and tests.
//!
//! The service side (frontends, services, slots, backends) is written word by word through a memory mapping by
//! one writer, and read by the programs at any moment. Each row therefore says in which order its words are
//! stored, and which word makes it visible.

mod affinity;
mod backend;
mod connection;
mod event;
mod fragment;
mod frontend;
mod masquerade;
mod name;
mod ports;
mod service;
mod socket;
mod stats;
mod table;
mod wire;

pub use affinity::{AffinityEntry, AffinityKey};
pub use backend::{Backend, BackendFlags};
pub use connection::{ConnEntry, ConnFlags, FlowAction, FlowEntry};
pub use event::{Event, EventKind, EventRate, Watch};
pub use fragment::{FragmentEntry, FragmentKey, HeldFragment};
pub use frontend::{
    Bucket4, Bucket6, FrontendKey, FrontendKind, FrontendValue, HAS_ENDPOINTS, SCOPE_ADDRESS,
    SCOPE_NODE_ADDRESS, SCOPE_NODE_PORT, SCOPE_SERVICE,
};
pub use masquerade::MasqueradeAddresses;
pub use name::ServiceName;
pub use ports::SeenPorts;
pub use service::{Algorithm, Class, Client, Policy, Publish, Service, ServiceVerdict, SourceRanges};
pub use socket::{
    ConnectedSocket, INITIAL_NAMESPACE, SocketChoice, SocketEnd, SocketFlow, SocketKey, SocketPeer,
};
pub use stats::{BackendStat, ServiceStat};
pub use table::{Control, Family, Forwarding, LAYOUT_VERSION, Row, Table, V4, V6, slot_of_word};
pub use wire::{WireAction, WireDevices, WireFlow, WireStat};
