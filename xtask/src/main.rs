//! The project's tasks: `cargo xtask --help`.

mod compiler;
mod core_source;
mod ebpf;
mod linker;
mod process;
mod progress;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Builds, tests and shows this project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build the datapath object with the stable compiler, fetching what that needs
    BuildEbpf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{} {error:#}", progress::paint("31;1", "error:"));
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    match task {
        Task::BuildEbpf => ebpf::build(&workspace).map(|_| ExitCode::SUCCESS),
    }
}
