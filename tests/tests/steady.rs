//! Never in the way: whatever becomes of agents and of what they keep in the kernel, traffic goes on. `docs/operations.md` says how,
//! line by line; each line has its test here.

#[path = "steady/common.rs"]
mod common;
#[path = "steady/configured.rs"]
mod configured;
#[path = "steady/killed.rs"]
mod killed;
#[path = "steady/knobs.rs"]
mod knobs;
#[path = "steady/page.rs"]
mod page;
#[path = "steady/removed.rs"]
mod removed;
#[path = "steady/stalled.rs"]
mod stalled;
#[path = "steady/traffic.rs"]
mod traffic;
