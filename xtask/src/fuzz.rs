//! `cargo xtask fuzz`: coverage-guided fuzzing of the packet logic in `lb-common`, from the corpus that is checked in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::workspace::Workspace;
use crate::{process, progress};

/// The cargo-fuzz that is installed.
const CARGO_FUZZ: &str = "0.13.2";
/// Bytes of the longest input: all the headers that are looked through, and some more.
const LONGEST: u32 = 512;

/// What to fuzz, and how long.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only these targets (file names in fuzz/fuzz_targets)
    targets: Vec<String>,
    /// Put what reaches new code into fuzz/corpus afterwards, with as few inputs as do
    #[arg(long)]
    keep: bool,
}

/// Runs each target for a while.
///
/// # Errors
/// When one of them fails; its last words have been printed, and the input lies where they say.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let program = ensure(workspace)?;
    let all = targets(workspace)?;
    if let Some(unknown) = options.targets.iter().find(|name| !all.contains(name)) {
        bail!("no fuzz target {unknown}; there are: {}", all.join(", "));
    }
    let chosen = if options.targets.is_empty() { all } else { options.targets.clone() };
    progress::headline("building fuzz targets");
    process::run(fuzz(workspace, &program, "build").args(common(workspace)))?;
    let mut failed = Vec::new();
    for target in chosen {
        progress::headline(format!("fuzz target {target}, {} s", options.seconds));
        match attempt(workspace, &program, &target, options) {
            Ok(done) => progress::note(format_args!("{target}: {done}")),
            Err(error) => {
                eprintln!("{error:#}");
                failed.push(target);
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("fuzz targets failed: {}", failed.join(", "))
}

/// Fuzzes one target, and returns the fuzzer's closing line.
fn attempt(workspace: &Workspace, program: &Path, target: &str, options: &Options) -> Result<String> {
    let (found, crashes) = (directory(workspace, target)?, directory(workspace, "crashes")?);
    let kept = workspace.root().join("fuzz/corpus").join(target);
    fs::create_dir_all(&kept).with_context(|| format!("create {}", kept.display()))?;
    let mut run = fuzz(workspace, program, "run");
    run.args(common(workspace)).arg(target).args([&found, &kept]).arg("--");
    // New inputs go into the first of the two directories.
    run.arg(format!("-max_total_time={}", options.seconds)).arg(format!("-max_len={LONGEST}"));
    run.arg(format!("-artifact_prefix={}/{target}-", crashes.display()));
    let output = process::output(&mut run)?;
    if !output.status.success() {
        bail!("{target} failed:\n{}", process::tail(&output));
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let done = text.lines().rev().find(|line| line.starts_with("Done ")).map(str::to_owned);
    if options.keep {
        // The fuzzer's own merge: what of the first directory covers something that the second does not.
        let mut merge = fuzz(workspace, program, "run");
        merge.args(common(workspace)).arg(target).args([&kept, &found]).args(["--", "-merge=1"]);
        process::capture(merge.arg(format!("-max_len={LONGEST}")))?;
    }
    done.with_context(|| format!("{target} ended without a word\n{}", process::tail(&output)))
}

/// The targets by name.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let directory = workspace.root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        names.extend(name.map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// A directory of ours below `target/fuzz`.
fn directory(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let directory = workspace.fuzz().join(name);
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    Ok(directory)
}

fn fuzz(workspace: &Workspace, program: &Path, subcommand: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(workspace.root()).arg(subcommand);
    // It calls cargo itself, for a package that is not this task's.
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}

/// Instrumentation for coverage needs no nightly compiler; a sanitizer would, and there is no unsafe code to find fault with.
fn common(workspace: &Workspace) -> [String; 4] {
    let target = workspace.fuzz().join("build").display().to_string();
    ["--sanitizer".to_owned(), "none".to_owned(), "--target-dir".to_owned(), target]
}

/// Returns the path of cargo-fuzz, installing it first when needed.
fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    let tools = workspace.tools();
    let program = tools.join("bin/cargo-fuzz");
    let installed = || Command::new(&program).arg("--version").output().map(|output| output.stdout);
    let wanted = format!("cargo-fuzz {CARGO_FUZZ}");
    if installed().is_ok_and(|version| String::from_utf8_lossy(&version).trim() == wanted) {
        return Ok(program);
    }
    let _lock = workspace.fetch_lock()?;
    progress::step(format!("{wanted} from the crate registry"), "runs the fuzz targets", || {
        process::install(&tools, "cargo-fuzz", CARGO_FUZZ)
    })?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_built() {
        let workspace = Workspace::locate().unwrap();
        let manifest = fs::read_to_string(workspace.root().join("fuzz/Cargo.toml")).unwrap();
        let names = targets(&workspace).unwrap();
        assert!(names.contains(&"headers".to_owned()), "{names:?}");
        for name in names {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is missing in fuzz/Cargo.toml");
        }
    }
}
