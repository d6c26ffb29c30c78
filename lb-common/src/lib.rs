//! What the kernel programs and the agent share: table layouts, hashes, checksums, connection state,
//! service lookup and drop reasons, as pure `no_std` code without a line of `unsafe`.
//!
//! The programs in `lb-ebpf` and the agent compile the very same functions, so that what the agent writes and
//! what a packet finds cannot drift apart.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod address;
pub mod byteorder;
pub mod checksum;
pub mod conntrack;
pub mod crc32c;
pub mod handshake;
pub mod hash;
pub mod headers;
pub mod icmp;
pub mod layout;
pub mod lookup;
pub mod proto;
pub mod reason;
pub mod sctp;
pub mod share;
pub mod tuple;
