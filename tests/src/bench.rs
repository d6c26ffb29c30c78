//! Benchmarks: what `cargo xtask bench` runs, as ratios measured within one run, with their spread.
//!
//! Each is a module with a `run` that takes [`Options`] and gives a [`Report`]. Whoever adds a row that answers a goal names the
//! goal in it; `docs/benchmarks/goals.yaml` says what the goals are.

pub mod balancer;
pub mod chart;
pub mod churn;
pub mod control;
pub mod goals;
pub mod keep;
pub mod latency;
pub mod machine;
pub mod packet;
pub mod publish;
pub mod report;
pub mod stand;
pub mod throughput;
pub mod traffic;

use std::fmt;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use self::report::Report;

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Benchmark {
    /// Nanoseconds, instructions and helper calls a packet, against reference programs in the same run
    Packet,
    /// Packets and bytes a second
    Throughput,
    /// Requests and connections through a Service, against no Service, iptables and nftables
    Latency,
    /// Filling and changing the tables, memory and CPU of the agent
    Control,
    /// Endpoint changes under load
    Churn,
}

impl Benchmark {
    /// Every one, in the order they are run.
    pub const ALL: [Self; 5] = [Self::Packet, Self::Throughput, Self::Latency, Self::Control, Self::Churn];

    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Throughput => "throughput",
            Self::Latency => "latency",
            Self::Control => "control",
            Self::Churn => "churn",
        }
    }

    /// Runs it.
    ///
    /// # Errors
    /// When something it needs is missing, or what it measures does not do what it should.
    pub fn run(self, options: &Options) -> Result<Report> {
        match self {
            Self::Packet => packet::run(options),
            Self::Throughput => throughput::run(options),
            Self::Latency => latency::run(options),
            Self::Control => control::run(options),
            Self::Churn => churn::run(options),
        }
    }
}

/// What every benchmark takes.
#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// Rounds; every case is measured once in each. Each benchmark has its own default
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1001))]
    pub rounds: Option<u32>,
    /// Fewer and shorter rounds: less sure, a fraction of the time
    #[arg(long)]
    pub quick: bool,
    /// Only cases with this in their name; nothing is kept then but what `--save` asks for
    #[arg(long, default_value = "")]
    pub filter: String,
    /// Write the report here as JSON, too
    #[arg(long)]
    pub save: Option<PathBuf>,
}

impl Options {
    /// Rounds to do: as told, or one of these defaults.
    pub fn rounds(&self, usual: usize, quick: usize) -> usize {
        self.rounds.map_or(if self.quick { quick } else { usual }, |rounds| rounds as usize)
    }

    /// Whether a case is wanted.
    pub fn wants(&self, case: &str) -> bool {
        case.contains(&self.filter)
    }
}

/// How long whoever waits hears nothing at most.
const SILENCE: Duration = Duration::from_secs(2);

/// Does something that may take long, and says every two seconds that it still does.
pub fn waited<T>(what: impl fmt::Display, work: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        let begin = Instant::now();
        // Dropped when the work is done, or has panicked.
        let (_done, over) = mpsc::channel::<()>();
        let what = what.to_string();
        scope.spawn(move || {
            while over.recv_timeout(SILENCE) == Err(RecvTimeoutError::Timeout) {
                progress(format_args!("{what}: {:.0} s", begin.elapsed().as_secs_f64()));
            }
        });
        work()
    })
}

/// Tells whoever waits how far a benchmark is, on standard error.
pub fn progress(what: impl fmt::Display) {
    eprintln!("{what}");
}
