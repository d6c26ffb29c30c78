//! The XDP path: the program at network devices, kept there by agents, and clients outside served through it.

#[path = "xdp/attach.rs"]
mod attach;
#[path = "xdp/common.rs"]
mod common;
#[path = "xdp/refusals.rs"]
mod refusals;
#[path = "xdp/traffic.rs"]
mod traffic;
