//! What `cargo xtask bench` runs.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use lb_tests::bench::report::Report;
use lb_tests::bench::{Benchmark, Options, goals, keep, progress, publish};

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
    /// Put the last reports beside the goals and draw charts, in docs/benchmarks
    ///
    /// What is left out keeps the report that was published last.
    Publish {
        /// Only these (`packet`, `latency`, …)
        #[arg(value_parser = benchmark)]
        benchmarks: Vec<Benchmark>,
        /// Draw what was published anew, after a change of goals or charts
        #[arg(long, conflicts_with = "benchmarks")]
        draw: bool,
    },
    /// What changed from one report to another; fails when a case got worse
    Compare {
        /// The earlier report: a file, or a commit whose reports were published
        before: String,
        /// The later one
        after: String,
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
        Task::Publish { draw: true, .. } => {
            publish::draw()?;
            println!("docs/benchmarks is drawn anew");
        }
        Task::Publish { benchmarks, .. } => {
            let benchmarks = if benchmarks.is_empty() { Benchmark::ALL.to_vec() } else { benchmarks };
            let (kept, missing) = publish::publish(&benchmarks)?;
            println!("docs/benchmarks has {}", kept.join(", "));
            for missing in missing {
                println!("missing: {missing}");
            }
        }
        Task::Compare { before, after } => return compare(&before, &after),
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

fn benchmark(name: &str) -> Result<Benchmark> {
    let found = Benchmark::ALL.into_iter().find(|benchmark| benchmark.name() == name);
    found.with_context(|| {
        let names = Benchmark::ALL.map(Benchmark::name).join(", ");
        format!("no benchmark is called {name:?}: {names}")
    })
}

/// Compares reports of the same benchmarks.
fn compare(before: &str, after: &str) -> Result<ExitCode> {
    let (before, after) = (reports(before)?, reports(after)?);
    let (mut pairs, mut worse) = (0, 0);
    for after in &after {
        let Some(before) = before.iter().find(|before| before.benchmark == after.benchmark) else { continue };
        println!("{}", after.compared_to(before));
        pairs += 1;
        worse += after.regressions(before).len();
    }
    ensure!(pairs > 0, "these are reports of different benchmarks");
    Ok(if worse == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The report in a file, or the last one of each benchmark that was published of a commit.
fn reports(name: &str) -> Result<Vec<Report>> {
    let file = Path::new(name);
    if file.exists() {
        return Ok(vec![keep::read(file)?]);
    }
    let history = publish::history(&publish::directory())?;
    let of_commit = |report: &&Report| report.machine.commit.starts_with(name);
    let mut found: Vec<Report> = Vec::new();
    for report in history.iter().rev().filter(of_commit) {
        if found.iter().all(|known| known.benchmark != report.benchmark) {
            found.push(report.clone());
        }
    }
    ensure!(!found.is_empty(), "{name} is no file, and nothing of such a commit stands in history.jsonl");
    Ok(found)
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
