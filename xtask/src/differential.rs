//! `cargo xtask differential`: programs and model, over as many random sequences as one has time for.

use std::ffi::OsString;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::host::{self, Profile};
use crate::test::binary;
use crate::workspace::Workspace;
use crate::{ebpf, progress, setup};

/// The test that is run.
const TEST: &str = "differential";

/// How many sequences, and which.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Sequences, of both forwarding modes together
    #[arg(long, default_value_t = 1_000_000)]
    sequences: u32,
    /// The seed that they come from (default: that of the test suite)
    #[arg(long)]
    seed: Option<u64>,
}

/// Builds programs and test, and runs it with progress shown.
///
/// # Errors
/// When something cannot be built or started.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    setup::ensure()?;
    ebpf::build(workspace)?;
    progress::headline("building the differential test");
    let mut cargo = host::cargo(workspace, "test", Profile::Dev);
    cargo.args(["--no-run", "--message-format=json-render-diagnostics", "--test", TEST]);
    let output = cargo.stderr(Stdio::inherit()).output().context("run cargo")?;
    if !output.status.success() {
        bail!("the test does not build; the compiler's words are above");
    }
    let built = binary::parse(&String::from_utf8(output.stdout)?)?;
    let test = built.into_iter().find(|binary| binary.is_integration_test).context("cargo built no test")?;
    let mut command: Command = test.command();
    command.arg("--nocapture").env("LB_DIFFERENTIAL", options.sequences.to_string());
    if let Some(seed) = options.seed {
        command.env("LB_TEST_SEED", OsString::from(seed.to_string()));
    }
    let status = command.status().context("run the test")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
