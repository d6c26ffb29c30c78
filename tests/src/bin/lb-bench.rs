//! What `cargo xtask bench` runs.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use lb_tests::bench::{Benchmark, Options, goals, keep, progress};

/// Measure on this machine, as ratios within one run
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    task: Task,
    /// What to print
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Format,
}

#[derive(Subcommand)]
enum Task {
    /// Nanoseconds, instructions and helper calls a packet, against reference programs in the same run
    Packet(Options),
    /// Packets and bytes a second, against the least that a program can do, and against no Service
    Throughput(Options),
    /// Requests and connections through a Service, against no Service, iptables and nftables
    Latency(Options),
    /// Filling and changing the tables, memory and CPU of the agent, beside nft and iptables-restore
    Control(Options),
    /// Endpoint changes under load: failed requests, moved connections, longest gap
    Churn(Options),
    /// All of them, one after another, each in a process of its own
    All {
        /// Fewer and shorter rounds
        #[arg(long)]
        quick: bool,
    },
    /// What changed from one saved report to another; fails when a case got worse
    Compare {
        /// The earlier report
        before: PathBuf,
        /// The later one
        after: PathBuf,
    },
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table
    #[default]
    Table,
    /// JSON
    Json,
}

fn main() -> Result<ExitCode> {
    let Args { task, output } = Args::parse();
    match task {
        Task::Packet(options) => measure(Benchmark::Packet, &options, output)?,
        Task::Throughput(options) => measure(Benchmark::Throughput, &options, output)?,
        Task::Latency(options) => measure(Benchmark::Latency, &options, output)?,
        Task::Control(options) => measure(Benchmark::Control, &options, output)?,
        Task::Churn(options) => measure(Benchmark::Churn, &options, output)?,
        Task::All { quick } => return all(quick),
        Task::Compare { before, after } => {
            let (before, after) = (keep::read(&before)?, keep::read(&after)?);
            print!("{}", after.compared_to(&before));
            if !after.regressions(&before).is_empty() {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(benchmark: Benchmark, options: &Options, output: Format) -> Result<()> {
    let goals = goals::read()?;
    let report = benchmark.run(options)?;
    if options.filter.is_empty() {
        keep::save(&report, &keep::last(benchmark))?;
    }
    if let Some(path) = &options.save {
        keep::save(&report, path)?;
    }
    match output {
        Format::Table => print!("{}", report.table()),
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    goals::check(&goals, &report)
}

/// Runs every benchmark as a program of its own, so that none finds what another left in memory or on a CPU.
fn all(quick: bool) -> Result<ExitCode> {
    let program = std::env::current_exe().context("find this program")?;
    let mut failed = Vec::new();
    for benchmark in Benchmark::ALL {
        progress(format_args!("\n{}", benchmark.name()));
        let mut command = Command::new(&program);
        command.arg(benchmark.name()).args(quick.then_some("--quick"));
        let status = command.status().with_context(|| format!("run {}", program.display()))?;
        if !status.success() {
            failed.push(benchmark.name());
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    progress(format_args!("\nfailed: {}", failed.join(", ")));
    Ok(ExitCode::FAILURE)
}
