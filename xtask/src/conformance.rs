//! `cargo xtask conformance`: what Kubernetes' end-to-end tests ask of a Service proxy, asked on this machine's kernel.
//!
//! - `absent`: titles that are not run, and why.
//! - `record`: what the suite wrote down, one line a finished run.
//! - `report`: the table for the terminal, the page `docs/conformance.md`, the object for `-o json`.

mod absent;
mod record;
mod report;

use std::fs;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use self::record::Run;
use self::report::Report;
use crate::host::{self, Profile};
use crate::test::{binary, watch};
use crate::workspace::Workspace;
use crate::{ebpf, process, progress, setup};

/// The test binary.
const SUITE: &str = "conformance";
/// The variable that tells the suite where to write its record.
const RECORD: &str = "LB_CONFORMANCE_RECORD";
/// The page about the last full run.
const PAGE: &str = "docs/conformance.md";

/// What is printed at the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table for people.
    #[default]
    Table,
    /// An object for programs.
    Json,
}

/// Runs the suite (titles whose name contains `filter`), prints what came of it, and writes the page if it ran in full.
pub(crate) fn run(workspace: &Workspace, filter: Option<&str>, format: Format) -> Result<ExitCode> {
    setup::ensure()?;
    ebpf::build(workspace)?;
    let suite = build(workspace)?;
    let path = workspace.cargo_target().join("conformance.jsonl");
    if path.exists() {
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    let mut list = suite.command();
    list.args(["--list", "--format", "terse"]).args(filter);
    let listed = record::listed(&process::capture(&mut list)?);
    if listed.is_empty() {
        bail!("no title has `{}` in its name", filter.unwrap_or_default());
    }
    progress::headline(format_args!("conformance: {} runs", listed.len()));
    let started = Instant::now();
    let mut command = suite.command();
    command.args(filter).env(RECORD, &path);
    let ended = watch::run(SUITE, command, true)?;
    let took = started.elapsed();
    let runs = record::read(&fs::read_to_string(&path).unwrap_or_default())?;
    let report = Report::new(&kernel()?, &listed, &runs);
    if !ended.success && report.passed() {
        eprint!("{}", ended.stderr_tail());
        bail!("the suite {} although every title passed", ended.how);
    }
    match format {
        Format::Table => print!("{}", report.table()),
        Format::Json => println!("{}", report.json()?),
    }
    if filter.is_none() {
        let page = workspace.root().join(PAGE);
        fs::write(&page, report.page()).with_context(|| format!("write {}", page.display()))?;
        progress::note(format_args!("{PAGE} tells of this run"));
    }
    eprintln!("{}, in {:.0} s", report.summary(), took.as_secs_f64());
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the agent, the lab's programs, and the suite.
fn build(workspace: &Workspace) -> Result<binary::Binary> {
    progress::headline("building agent, lab and suite");
    let mut cargo = host::cargo(workspace, "build", Profile::Dev);
    cargo.args(["--bins", "--test", SUITE, "--message-format=json-render-diagnostics"]);
    let output = cargo.stderr(Stdio::inherit()).output().context("run cargo")?;
    if !output.status.success() {
        bail!("the suite does not build; the compiler's words are above");
    }
    let binaries = binary::parse(&String::from_utf8(output.stdout)?)?;
    let suite = binaries.into_iter().find(|binary| binary.is_integration_test && binary.target == SUITE);
    suite.context("cargo built no suite")
}

/// The kernel's release.
fn kernel() -> Result<String> {
    let path = PathBuf::from("/proc/sys/kernel/osrelease");
    let release = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(release.trim().to_owned())
}

/// For the report: a run that was listed.
type Listed = String;

/// The full name of a run, as the suite lists it.
fn name_of(run: &Run) -> Listed {
    format!("{} {} {{{}}}", run.suite, run.title, run.place)
}
