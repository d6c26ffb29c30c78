//! Time in the kernel for a run of a program.

use std::time::Duration;

use anyhow::{Result, ensure};
use aya::TestRunResult;
use aya::programs::{TestRun, TestRunOptions};

use crate::bench::report::Spread;

/// What can be run on a packet.
pub(super) trait Runs: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult> {}

impl<P> Runs for P where P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult> {}

/// Runs are done in so many batches, short enough that some of them are not interrupted; the fastest counts.
const BATCHES: u32 = 25;

/// Nanoseconds a run of many on one packet, by what this thread used of its CPU, so that waiting for others does not count; and
/// what others left of the caches is the same to all when the fastest batch counts. Gives the last run's return value, too.
pub(super) fn repeat<P: Runs>(
    program: &P,
    packet: &[u8],
    context: Option<&[u8]>,
    count: u32,
) -> Result<(f64, u32)> {
    let (batch, mut fastest, mut returned) = ((count / BATCHES).max(1), f64::INFINITY, 0);
    for _ in 0..BATCHES {
        let options = TestRunOptions {
            data_in: Some(packet),
            ctx_in: context,
            repeat: batch,
            ..TestRunOptions::default()
        };
        let before = used()?;
        returned = program.test_run(options)?.return_value;
        fastest = fastest.min((used()? - before).as_nanos() as f64 / f64::from(batch));
    }
    Ok((fastest, returned))
}

/// Median of the nanoseconds of one run on each packet, two looks at the clock included.
pub(super) fn once<P: Runs>(program: &P, packets: &[Vec<u8>]) -> Result<f64> {
    let time = |packet: &Vec<u8>| {
        let options = TestRunOptions { data_in: Some(packet), repeat: 1, ..TestRunOptions::default() };
        anyhow::Ok(program.test_run(options)?.duration.as_nanos() as f64)
    };
    let times = packets.iter().map(time).collect::<Result<Vec<_>>>()?;
    Ok(Spread::of(times).median)
}

/// CPU time of this thread.
fn used() -> Result<Duration> {
    // SAFETY: `clock_gettime` writes one structure, which is plain numbers.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        ensure!(libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) == 0, "clock_gettime");
        time
    };
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}
