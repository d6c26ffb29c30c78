//! The clock: seconds without reading it for each packet.
//!
//! What second it is stays true for as long as the kernel counts no further jiffy, unless the second ends meanwhile. So it is
//! kept beside the jiffy in which it was read, but for the last part of each second.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};

/// Nanoseconds.
pub const SECOND: u64 = 1_000_000_000;
/// Nanoseconds of a second after which it is read anew each time: what is left is longer than any jiffy (1 to 10 ms),
/// even if the kernel counts it late.
const KEPT: u64 = SECOND - SECOND / 16;

/// The jiffy (upper half) in which it was a second (lower half) of the clock. One word: whoever interrupts whom between
/// reading and writing, on whatever CPU, the halves belong together.
#[unsafe(no_mangle)]
static mut KNOWN_SECOND: u64 = 0;

/// Monotonic nanoseconds (`CLOCK_MONOTONIC`).
#[inline(always)]
pub fn nanos() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Low 32 bits of the kernel's jiffies.
#[inline(always)]
pub fn jiffies() -> u32 {
    // SAFETY: a helper without arguments; inlined by the verifier.
    unsafe { bpf_jiffies64() as u32 }
}

/// Seconds from one moment to another; 0 when that was earlier, which it may be by a hair on another CPU.
#[inline(always)]
pub fn since(now: u32, then: u32) -> u32 {
    let seconds = now.wrapping_sub(then);
    if (seconds as i32) < 0 { 0 } else { seconds }
}

/// Monotonic seconds, as the tables of connections, affinities and sockets count them.
#[inline(always)]
pub fn now() -> u32 {
    let jiffy = jiffies();
    let word = &raw mut KNOWN_SECOND;
    // SAFETY: a word in the object's own memory; volatile because other CPUs write it.
    let known = unsafe { word.read_volatile() };
    // 0 is nobody's word: no program runs in the first second of a kernel.
    if known as u32 != 0 && (known >> 32) as u32 == jiffy {
        return known as u32;
    }
    let nanos = nanos();
    let second = nanos / SECOND;
    if nanos - second * SECOND < KEPT {
        // SAFETY: as above.
        unsafe { word.write_volatile((jiffy as u64) << 32 | second) };
    }
    second as u32
}
