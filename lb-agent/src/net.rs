//! The node's network as netlink tells it: which devices lead to pods and which ones out of the node, the node's
//! addresses, and the ways to endpoints.

mod addresses;
mod follow;
mod message;
mod mirror;
mod select;
mod sysctls;
mod ways;

pub use addresses::{AddressOptions, Families, NodeAddressing, NodePortRange, Pair};
pub use follow::{Depth, FilterRemovals, Follower, Notice, ask_neighbour, connect};
pub use message::Changed;
pub use mirror::{Affected, Link, LinkKind, LocalAddress, Mac, Mirror, Neighbour, RouteKey, Target};
pub use select::{
    DEFAULT_NET_DEVICES, DEFAULT_POD_BRIDGES, DEFAULT_POD_DEVICES, DeviceSelection, NetChoice, Patterns,
};
pub use sysctls::check_sysctls;
pub use ways::{Finding, way_to};
