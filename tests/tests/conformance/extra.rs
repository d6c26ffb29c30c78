//! Cases that upstream's suite has none for, from what users of other proxies met.

#[path = "extra/away.rs"]
mod away;
#[path = "extra/collisions.rs"]
mod collisions;
#[path = "extra/reuse.rs"]
mod reuse;
#[path = "extra/streams.rs"]
mod streams;
#[path = "extra/zones.rs"]
mod zones;

use crate::prelude::*;

/// The titles.
pub(crate) fn groups() -> Vec<Group> {
    let titles = [streams::titles(), reuse::titles(), collisions::titles(), zones::titles(), away::titles()];
    vec![Group::new("none", "Beyond upstream", titles.into_iter().flatten().collect())]
}
