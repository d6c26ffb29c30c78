//! Running other programs: with their output shown, or captured and shown only when they fail.

use std::env;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// How many of the last lines of a failed program's output an error carries.
const TAIL_LINES: usize = 25;

/// The cargo that runs this task, without the variables cargo sets for the task itself: they would only make
/// build scripts believe that their environment changed.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let of_the_task =
            ["CARGO_PKG_", "CARGO_BIN_", "CARGO_MANIFEST_"].iter().any(|prefix| text.starts_with(prefix));
        if of_the_task || matches!(text, "CARGO_CRATE_NAME" | "CARGO_PRIMARY_PACKAGE" | "OUT_DIR") {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Installs a program from the crate registry into `tools/bin`.
pub(crate) fn install(tools: &Path, name: &str, version: &str) -> Result<()> {
    // Its own target directory: a shared one would be locked against, and flooded by, the build of this clone.
    let scratch = tools.join("build");
    let mut command = cargo();
    command.args(["install", name, "--version", version, "--locked", "--force", "--root"]).arg(tools);
    command.arg("--target-dir").arg(&scratch);
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    capture(&mut command).with_context(|| {
        format!(
            "{name} could not be installed; this once it needs the crate registry and a C linker (package gcc). \
             Run the same command again when they can be had"
        )
    })?;
    fs::remove_dir_all(&scratch).with_context(|| format!("remove {}", scratch.display()))
}

/// Runs a program with its output shown.
///
/// # Errors
/// When it cannot be started or ends with anything but success.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|error| not_started(command, &error))?;
    if !status.success() {
        bail!("`{}` failed ({status})", describe(command));
    }
    Ok(())
}

/// Runs a program and returns what it printed.
///
/// # Errors
/// When it cannot be started or fails; the error carries the end of its output.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!("`{}` failed ({})\n{}", describe(command), output.status, tail(&output));
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` printed no UTF-8", describe(command)))
}

/// Runs a program and returns everything about its end, success or not.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().map_err(|error| not_started(command, &error))
}

/// The last lines a program printed on standard error (or output, when that is empty), indented.
pub(crate) fn tail(output: &Output) -> String {
    let bytes = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(TAIL_LINES);
    lines[start..].iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// Whether a program of that name is on `PATH`.
pub(crate) fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    // Administration tools often lie in directories that only root's PATH has.
    let extra = ["/usr/sbin", "/sbin"].map(Into::into);
    env::split_paths(&path).chain(extra).any(|dir| dir.join(program).is_file())
}

fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut words = vec![program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

fn not_started(command: &Command, error: &io::Error) -> anyhow::Error {
    anyhow::anyhow!("cannot run `{}`: {error}", command.get_program().to_string_lossy())
}
