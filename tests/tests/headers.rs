//! Odd packets of real senders: pings of cluster IPs, headers that sockets are told to send, frames longer than a page in
//! pieces, super-packets over 64 KiB, tags of virtual LANs.

#[path = "headers/common.rs"]
mod common;
#[path = "headers/frames.rs"]
mod frames;
#[path = "headers/pings.rs"]
mod pings;
#[path = "headers/sockets.rs"]
mod sockets;
