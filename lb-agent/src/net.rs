//! The node's network as netlink tells it: which devices lead to pods, and the ways to endpoints.

mod follow;
mod message;
mod mirror;
mod select;
mod ways;

pub use follow::{Depth, Follower, Notice, ask_neighbour, connect};
pub use message::Changed;
pub use mirror::{Affected, Link, LinkKind, Mac, Mirror, Neighbour, RouteKey, Target};
pub use select::{DEFAULT_POD_BRIDGES, DEFAULT_POD_DEVICES, DeviceSelection, Patterns};
pub use ways::{Finding, way_to};
