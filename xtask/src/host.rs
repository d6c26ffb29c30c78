//! Host builds: `cargo xtask build`, and what is built to be run at once: `cargo xtask demo` and `cargo xtask bench`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::workspace::Workspace;
use crate::{ebpf, process, progress, setup};

/// The program that tells the demo's story.
const DEMO: &str = "lb-demo";
/// The program that measures.
const BENCH: &str = "lb-bench";

/// Debug or optimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

impl Profile {
    /// From a `--release` flag.
    pub(crate) fn of(release: bool) -> Self {
        if release { Self::Release } else { Self::Dev }
    }

    /// What cargo calls the directory of that profile.
    pub(crate) fn directory(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// Cargo on everything but the BPF programs.
///
/// Always the same packages: with others, cargo would unify features differently and compile much twice.
pub(crate) fn cargo(workspace: &Workspace, subcommand: &str, profile: Profile) -> Command {
    let mut cargo = process::cargo();
    cargo.current_dir(workspace.root()).args([subcommand, "--workspace", "--exclude", "lb-ebpf"]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    cargo
}

/// Builds the datapath, then all programs with it inside. Returns where they lie.
pub(crate) fn build(workspace: &Workspace, profile: Profile) -> Result<PathBuf> {
    ebpf::build(workspace)?;
    progress::headline(match profile {
        Profile::Dev => "building agent and lab",
        Profile::Release => "building agent and lab, optimised: the first time some ten minutes of CPU",
    });
    process::run(cargo(workspace, "build", profile).arg("--bins"))?;
    let directory = workspace.cargo_target().join(profile.directory());
    progress::note(format_args!("programs in {}", directory.display()));
    Ok(directory)
}

/// Builds and runs the demo; its exit code is ours.
pub(crate) fn demo(workspace: &Workspace, profile: Profile, args: &[OsString]) -> Result<ExitCode> {
    run(workspace, profile, DEMO, args)
}

/// Builds and runs the benchmarks, optimised where more than the kernel's own work is measured.
pub(crate) fn bench(workspace: &Workspace, args: &[OsString]) -> Result<ExitCode> {
    let measured = ["throughput", "latency", "control", "churn", "all"];
    let release = args.iter().any(|argument| measured.iter().any(|name| argument == name));
    run(workspace, Profile::of(release), BENCH, args)
}

fn run(workspace: &Workspace, profile: Profile, name: &str, args: &[OsString]) -> Result<ExitCode> {
    setup::ensure()?;
    let program = build(workspace, profile)?.join(name);
    let mut command = Command::new(&program);
    command.args(args).current_dir(workspace.root());
    let status = command.status().with_context(|| format!("run {}", program.display()))?;
    match status.code() {
        Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))),
        None => bail!("{name} was ended: {status}"),
    }
}
