//! Grace periods: waiting until every program that may still read something removed has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tracing::debug;

/// Waits until every program that runs now has ended.
pub trait Grace {
    /// Returns when no reader is left that began before the call.
    fn wait(&self);
}

/// The kernel's grace period: `membarrier(MEMBARRIER_CMD_GLOBAL)` is `synchronize_rcu` (`kernel/sched/membarrier.c`),
/// and programs run inside an RCU read section. Takes milliseconds.
///
/// Where the call is not supported (`nohz_full`), or does nothing because only one CPU is online, it waits one
/// second instead, far longer than any program runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Membarrier;

impl Membarrier {
    const FALLBACK: Duration = Duration::from_secs(1);

    fn global() -> bool {
        // SAFETY: sysconf only reads a system constant.
        let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        if cpus < 2 {
            return false;
        }
        // SAFETY: the command takes no pointer and touches no memory of ours.
        let done = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
        done == 0
    }
}

impl Grace for Membarrier {
    fn wait(&self) {
        if !Self::global() {
            debug!("no membarrier here: waiting a second for running programs to end");
            thread::sleep(Self::FALLBACK);
        }
    }
}

/// Counts grace periods and returns at once: for tables that no program reads.
#[derive(Clone, Debug, Default)]
pub struct CountedGrace {
    waited: Arc<AtomicU64>,
}

impl CountedGrace {
    /// Grace periods so far.
    pub fn count(&self) -> u64 {
        self.waited.load(Ordering::Relaxed)
    }
}

impl Grace for CountedGrace {
    fn wait(&self) {
        self.waited.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_kernels_grace_period_ends() {
        let before = Instant::now();
        Membarrier.wait();
        assert!(before.elapsed() < Duration::from_secs(30));
    }
}
