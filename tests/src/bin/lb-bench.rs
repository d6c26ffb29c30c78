//! What `cargo xtask bench` runs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use lb_tests::bench::packet;
use lb_tests::bench::report::Report;

/// Measure the datapath on this machine, as ratios within one run
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    benchmark: Benchmark,
    /// What to print
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Format,
}

#[derive(Subcommand)]
enum Benchmark {
    /// Nanoseconds, instructions and helper calls a packet, against reference programs in the same run
    Packet {
        /// Rounds; every case is measured once in each
        #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=101))]
        rounds: u32,
        /// Only cases with this in their name
        #[arg(long, default_value = "")]
        filter: String,
        /// Write the report here as JSON, too
        #[arg(long)]
        save: Option<PathBuf>,
    },
    /// What changed from one saved report to another
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

fn main() -> Result<()> {
    let args = Args::parse();
    match args.benchmark {
        Benchmark::Packet { rounds, filter, save } => {
            let report =
                packet::run(rounds as usize, &filter, |round| eprintln!("round {round} of {rounds} done"))?;
            let json = serde_json::to_string_pretty(&report)?;
            if let Some(path) = save {
                fs::write(&path, format!("{json}\n")).with_context(|| format!("write {}", path.display()))?;
            }
            match args.output {
                Format::Table => print!("{}", report.table()),
                Format::Json => println!("{json}"),
            }
        }
        Benchmark::Compare { before, after } => {
            print!("{}", read(&after)?.compared_to(&read(&before)?));
        }
    }
    Ok(())
}

fn read(path: &PathBuf) -> Result<Report> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is no report of `cargo xtask bench`", path.display()))
}
