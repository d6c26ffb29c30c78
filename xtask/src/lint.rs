//! `cargo xtask lint`: everything that is checked without running the code. All checks run; all failures are told.

use std::process::Command;

use anyhow::{Result, bail};

use crate::ebpf::BpfToolchain;
use crate::host::{self, Profile};
use crate::workspace::Workspace;
use crate::{licences, process, progress, tidy};

/// The cargo-deny that `--deny` installs.
const CARGO_DENY: &str = "0.20.2";

/// Runs every check. With `deny`, cargo-deny too (installed into `target/tools` when missing).
///
/// # Errors
/// Naming the checks that failed; what they found has been printed by then.
pub(crate) fn run(workspace: &Workspace, deny: bool) -> Result<()> {
    let mut failed = Vec::new();
    let mut check = |name: &'static str, work: &dyn Fn() -> Result<()>| {
        progress::headline(name);
        if let Err(error) = work() {
            eprintln!("{} {name}: {error:#}", progress::paint("31;1", "lint:"));
            failed.push(name);
        }
    };
    check("tidy", &|| tidy::run(workspace));
    check("rustfmt", &|| {
        // Left to itself, rustfmt colours its differences in log files too.
        let colour = if progress::coloured() { "always" } else { "never" };
        let mut fmt = process::cargo();
        fmt.current_dir(workspace.root()).args(["fmt", "--all", "--check", "--", "--color", colour]);
        process::run(&mut fmt)
    });
    check("licences", &|| {
        let packages = licences::check(workspace)?;
        progress::note(format_args!("{packages} packages"));
        Ok(())
    });
    check("clippy, host crates", &|| {
        let mut clippy = host::cargo(workspace, "clippy", Profile::Dev);
        process::run(clippy.args(["--all-targets", "--keep-going", "--", "-D", "warnings"]))
    });
    check("clippy, datapath", &|| {
        let toolchain = BpfToolchain::ensure(workspace)?;
        process::run(toolchain.cargo(workspace, "clippy").args(["--", "-D", "warnings"]))
    });
    if deny {
        check("cargo-deny", &|| cargo_deny(workspace));
    }
    if failed.is_empty() {
        progress::note("lint");
        return Ok(());
    }
    bail!("lint failed: {}", failed.join("; "))
}

fn cargo_deny(workspace: &Workspace) -> Result<()> {
    let tools = workspace.tools();
    let program = tools.join("bin/cargo-deny");
    let version =
        Command::new(&program).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    if String::from_utf8_lossy(&version).trim() != format!("cargo-deny {CARGO_DENY}") {
        let _lock = workspace.fetch_lock()?;
        let what = format!("cargo-deny {CARGO_DENY} from the crate registry");
        progress::step(what, "checks bans, licences and sources of dependencies", || {
            process::install(&tools, "cargo-deny", CARGO_DENY)
        })?;
    }
    let mut deny = Command::new(&program);
    deny.current_dir(workspace.root()).args(["check", "bans", "licenses", "sources"]);
    process::run(&mut deny)
}
