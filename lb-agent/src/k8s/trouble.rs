//! Log of a source that is in trouble: the first failure, then one every half minute, and the recovery.

use std::error::Error;
use std::fmt::Write;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

/// How often continued trouble is logged.
const REPEAT: Duration = Duration::from_secs(30);

/// The trouble one watched thing is in.
#[derive(Debug)]
pub(super) struct Trouble {
    what: &'static str,
    since: Option<Since>,
}

#[derive(Debug)]
struct Since {
    first: Instant,
    logged: Instant,
    failures: u32,
}

impl Trouble {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, since: None }
    }

    /// Something failed. True when it was logged as a warning.
    pub(super) fn failed(&mut self, now: Instant, error: &str) -> bool {
        match &mut self.since {
            None => {
                self.since = Some(Since { first: now, logged: now, failures: 1 });
                warn!(what = self.what, error, "source failed; going on with what is known");
                true
            }
            Some(since) => {
                since.failures += 1;
                let due = now.duration_since(since.logged) >= REPEAT;
                if due {
                    since.logged = now;
                    let seconds = now.duration_since(since.first).as_secs();
                    warn!(
                        what = self.what,
                        error,
                        seconds,
                        failures = since.failures,
                        "source still failing"
                    );
                } else {
                    debug!(what = self.what, error, "source still failing");
                }
                due
            }
        }
    }

    /// It works. True when it did not before.
    pub(super) fn recovered(&mut self, now: Instant) -> bool {
        let Some(since) = self.since.take() else { return false };
        let seconds = now.duration_since(since.first).as_secs_f64();
        info!(what = self.what, seconds, failures = since.failures, "source works again");
        true
    }
}

/// An error with everything that caused it, in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            let _ = write!(text, ": {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_rare_and_recovery_is_told_once() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut trouble = Trouble::new("services");
        assert!(!trouble.recovered(at(0)));
        assert!(trouble.failed(at(1), "refused"));
        assert!(!trouble.failed(at(2), "refused"));
        assert!(!trouble.failed(at(30), "refused"));
        assert!(trouble.failed(at(31), "refused"));
        assert!(!trouble.failed(at(60), "refused"));
        assert!(trouble.recovered(at(61)));
        assert!(!trouble.recovered(at(62)));
        assert!(trouble.failed(at(63), "refused"));
    }

    #[test]
    fn the_cause_is_told() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("inner"));
        assert_eq!(chain(&error), "outer: inner");
    }
}
