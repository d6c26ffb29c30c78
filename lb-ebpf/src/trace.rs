//! A line about each first packet, for debugging: off unless the agent loads the programs with `--datapath-log`.
//!
//! The level is a load-time constant: with logging off the verifier removes the calls.

use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use lb_common::address::{Ip4, Ip6};
use lb_common::layout::{V4, V6};

use crate::net::Net;

/// True when first packets are to be logged.
#[inline(always)]
pub fn enabled() -> bool {
    level_enabled(Level::Debug)
}

/// A connection began.
pub const SERVED: u32 = 0;
/// The packet is refused.
pub const REFUSED: u32 = 1;
/// The packet is dropped.
pub const DROPPED: u32 = 2;

/// Logging by address family.
pub trait Trace: Net {
    /// Logs the packet in this CPU's working memory and what became of it: [`SERVED`], [`REFUSED`] or [`DROPPED`].
    fn first_packet(outcome: u32);
}

macro_rules! global_function {
    ($family:ty, $log:ident, $octets:path) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $log(outcome: u32) -> i32 {
            let Some(scratch) = <$family>::scratch() else { return 0 };
            // The macro asks for a context and uses none.
            let (context, key) = (TcContext::new(core::ptr::null_mut()), &scratch.key);
            let (src, from) = ($octets(key.src), key.src_port.host());
            let (dst, to) = ($octets(key.dst), key.dst_port.host());
            let protocol = key.protocol;
            match outcome {
                SERVED => {
                    debug!(
                        &context,
                        "{:i}:{} -> {:i}:{} protocol {}: connection", src, from, dst, to, protocol
                    )
                }
                REFUSED => {
                    debug!(&context, "{:i}:{} -> {:i}:{} protocol {}: refused", src, from, dst, to, protocol)
                }
                _ => {
                    debug!(&context, "{:i}:{} -> {:i}:{} protocol {}: dropped", src, from, dst, to, protocol)
                }
            }
            0
        }

        impl Trace for $family {
            #[inline(always)]
            fn first_packet(outcome: u32) {
                $log(outcome);
            }
        }
    };
}

global_function!(V4, log4, octets4);
global_function!(V6, log6, octets6);

#[inline(always)]
fn octets4(address: Ip4) -> [u8; 4] {
    address.raw().to_ne_bytes()
}

#[inline(always)]
fn octets6(address: Ip6) -> [u8; 16] {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&address.first().to_ne_bytes());
    octets[8..].copy_from_slice(&address.last().to_ne_bytes());
    octets
}
