//! The kernel side of the agent: maps, programs and their attachment. The only place that calls bpf(2) or mmap, and
//! the only place of the agent with `unsafe` code.

mod attach;
mod attached;
mod cgroup;
mod connections;
mod constants;
mod error;
mod events;
mod load;
mod log;
pub mod mapped;
mod maps;
mod masquerade;
pub mod memory;
mod netlink;
mod object;
mod pins;
mod probe;
mod shadow;
mod shape;
mod sizes;
mod sockets;
mod stats;
mod sys;
mod xdp;

pub use attach::{AttachMode, Attached, Attacher, Cleaned, Repaired, cleanup};
pub use attached::{AttachedProgram, Attachments, Via};
pub use cgroup::{
    Cgroup, SocketAttacher, SocketHook, SocketOptions, SocketRepair, detach_sockets, find_cgroup,
};
pub use connections::{Connection, ConnectionCount, Connections, Entries, Shares, Swept};
pub use constants::Constants;
pub use error::{Error, Result};
pub use events::Events;
pub use load::{Adoption, Datapath, Hook, LoadOptions, Role};
pub use maps::{Found, Maps};
pub use masquerade::Masquerade;
pub use object::is_embedded;
pub use pins::{DEFAULT_ROOT, Pins};
pub use probe::{Finding, Outcome, probe};
pub use shadow::{Affinity, Ends, Fate, Ran, Shadow, ShadowFlow, affinity};
pub use shape::Map;
pub use sizes::Sizes;
pub use sockets::{Closed, SocketCloser, Suspects};
pub use stats::{BackendCounters, Counters, ServiceCounters};
pub use xdp::{XdpAttacher, XdpDevice, XdpKept, XdpLink, XdpMode, XdpNews, XdpPlace, xdp_links};
