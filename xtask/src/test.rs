//! `cargo xtask test`: builds everything once, runs every test binary, adds up.
//!
//! - `binary`: which test binaries cargo built.
//! - `output`: what a test binary says, understood.
//! - `watch`: running one with its output followed and its silence bounded.
//! - `summary`: the totals and the closing line.

pub(crate) mod binary;
mod output;
mod summary;
pub(crate) mod watch;

use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use self::binary::Binary;
use self::output::Output;
use self::summary::Summary;
use crate::host::{self, Profile};
use crate::workspace::Workspace;
use crate::{ebpf, progress, setup};

/// The package whose tests build nodes and pods.
const LAB: &str = "lb-tests";

/// Lab tests run one after another: each has agents, servers and clients of its own on the machine's few cores.
const LAB_THREADS: &str = "1";

/// Runs all tests whose name contains `filter`, and prints the closing line whatever happens.
pub(crate) fn run(workspace: &Workspace, filter: Option<&str>) -> ExitCode {
    let mut summary = Summary::default();
    if let Err(error) = run_all(workspace, filter, &mut summary) {
        progress::error(&error);
        summary.broken("set-up and build");
    }
    summary.close(filter)
}

fn run_all(workspace: &Workspace, filter: Option<&str>, summary: &mut Summary) -> Result<()> {
    setup::ensure()?;
    ebpf::build(workspace)?;
    let mut binaries = build(workspace)?;
    // What needs no lab first: it is quick, and explains most failures of the rest.
    binaries.sort_by_key(|binary| (binary.package == LAB, binary.is_integration_test, binary.label()));
    let (lab, host): (Vec<Binary>, Vec<Binary>) =
        binaries.into_iter().partition(|binary| binary.package == LAB && binary.is_integration_test);
    progress::headline("unit, property and scenario tests");
    for binary in &host {
        run_binary(binary, filter, summary)?;
    }
    documentation(workspace, filter, summary)?;
    progress::headline("lab tests");
    for binary in &lab {
        run_binary(binary, filter, summary)?;
    }
    Ok(())
}

/// Builds libraries, programs and tests in one go, and returns the test binaries.
fn build(workspace: &Workspace) -> Result<Vec<Binary>> {
    progress::headline("building programs and tests");
    let mut cargo = host::cargo(workspace, "build", Profile::Dev);
    cargo.args(["--all-targets", "--message-format=json-render-diagnostics"]);
    let output = cargo.stderr(Stdio::inherit()).output().context("run cargo")?;
    if !output.status.success() {
        bail!("the tests do not build; the compiler's words are above");
    }
    binary::parse(&String::from_utf8(output.stdout)?)
}

fn run_binary(binary: &Binary, filter: Option<&str>, summary: &mut Summary) -> Result<()> {
    let is_lab = binary.package == LAB;
    let mut command = binary.command();
    command.args(filter);
    if is_lab {
        command.env("RUST_TEST_THREADS", LAB_THREADS);
    }
    follow(&binary.label(), command, is_lab && binary.is_integration_test, summary)
}

/// Documentation's examples, which rustdoc runs.
fn documentation(workspace: &Workspace, filter: Option<&str>, summary: &mut Summary) -> Result<()> {
    let mut cargo = host::cargo(workspace, "test", Profile::Dev);
    cargo.args(["--doc", "--no-fail-fast", "--quiet", "--", "--format=pretty"]).args(filter);
    follow("documentation", cargo, false, summary)
}

fn follow(label: &str, command: Command, each_test: bool, summary: &mut Summary) -> Result<()> {
    let started = Instant::now();
    let ended = watch::run(label, command, each_test)?;
    let output = Output::parse(&ended.stdout);
    if !ended.success || output.unfinished() {
        eprint!("{}", output.failure_report());
        eprint!("{}", ended.stderr_tail());
    }
    let line = summary.add(label, &output, &ended);
    // Most binaries have no test of the wanted name, some no test at all.
    if !(ended.success && output.is_empty()) {
        eprintln!("{line}, {:.1} s", started.elapsed().as_secs_f64());
        // The whole report above ends in logs, the reasons are at its beginning.
        for line in output.brief_report().lines() {
            eprintln!("      {line}");
        }
    }
    Ok(())
}
