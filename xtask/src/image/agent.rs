//! The agent as one static program.
//!
//! With musl, whose standard library rustup installs: nothing but a C compiler (for `ring`) is needed besides. Where rustup
//! is missing or cannot reach its server, with this machine's own glibc, linked statically: from 2.34 on that resolves
//! names in `/etc/hosts` and by DNS without loading anything, which is all that the agent asks for.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use super::{Platform, elf};
use crate::compiler::{self, Compiler};
use crate::host::Profile;
use crate::workspace::Workspace;
use crate::{ebpf, process, progress, remap};

const PACKAGE: &str = "lb-agent";

/// Which C library is linked in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Libc {
    /// musl if it can be had, else glibc.
    #[default]
    Auto,
    /// musl.
    Musl,
    /// glibc of this machine (Debian: libc6-dev).
    Glibc,
}

/// A built program.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) path: PathBuf,
    /// The C library in it.
    pub(super) libc: &'static str,
}

/// Builds the datapath and the agent around it.
pub(super) fn build(
    workspace: &Workspace,
    compiler: &Compiler,
    platform: Platform,
    libc: Libc,
    profile: Profile,
) -> Result<Built> {
    let object = ebpf::build(workspace)?;
    let musl = triple(platform, "musl");
    let with_musl = match libc {
        Libc::Glibc => false,
        Libc::Musl => ensure_std(&musl).map(|()| true)?,
        Libc::Auto => match ensure_std(&musl) {
            Ok(()) => true,
            Err(error) => {
                eprintln!("      {error:#}");
                eprintln!("      linking with glibc instead");
                false
            }
        },
    };
    let (target, libc) = if with_musl { (musl, "musl") } else { (triple(platform, "gnu"), "glibc") };
    if !with_musl {
        ensure_std(&target)?;
    }
    progress::headline(format_args!("building {PACKAGE} for {target}, static"));
    let mut cargo = process::cargo();
    cargo.current_dir(workspace.root()).args(["build", "--package", PACKAGE, "--bin", PACKAGE]);
    cargo.args(["--target", &target, "--locked"]);
    cargo.args((profile == Profile::Release).then_some("--release"));
    cargo.env("LB_EBPF_OBJECT", &object);
    environment(&mut cargo, workspace, compiler, &target)?;
    let made_of = if with_musl { "" } else { "; static glibc comes with the package libc6-dev" };
    process::run(&mut cargo).with_context(|| {
        format!("the agent does not build for {target}; the compiler's words are above{made_of}")
    })?;
    let path = workspace.cargo_target().join(&target).join(profile.directory()).join(PACKAGE);
    let program = fs::read(&path).with_context(|| format!("cargo left no program at {}", path.display()))?;
    elf::check_static(&program, platform).with_context(|| path.display().to_string())?;
    Ok(Built { path, libc })
}

fn triple(platform: Platform, libc: &str) -> String {
    format!("{}-unknown-linux-{libc}", platform.machine())
}

/// What makes the build static, small and the same everywhere.
fn environment(cargo: &mut Command, workspace: &Workspace, compiler: &Compiler, target: &str) -> Result<()> {
    let mut flags = remap::flags(workspace, compiler, None)?;
    flags.push("-Ctarget-feature=+crt-static".into());
    // A linker's build identifier is made of debug information too, which names directories of C sources.
    flags.push("-Clink-arg=-Wl,--build-id=none".into());
    cargo.env_remove("RUSTFLAGS").env_remove("RUSTC_WRAPPER").env_remove("RUSTC_WORKSPACE_WRAPPER");
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    for profile in ["DEV", "RELEASE"] {
        cargo.env(format!("CARGO_PROFILE_{profile}_DEBUG"), "none");
        cargo.env(format!("CARGO_PROFILE_{profile}_STRIP"), "symbols");
    }
    cargo.env("CARGO_PROFILE_RELEASE_LTO", "thin");
    if let Some(tool) = c_compiler(compiler, target)? {
        let name = target.replace('-', "_");
        cargo.env(format!("CC_{name}"), &tool);
        cargo.env(format!("CARGO_TARGET_{}_LINKER", name.to_uppercase()), &tool);
    }
    Ok(())
}

/// The C compiler and linker driver to name to cargo, if it would not find the right one by itself.
///
/// The little C in the graph includes nothing that differs between C libraries, and Rust brings musl's own: so the
/// compiler for glibc of the same architecture does for musl, and no musl-gcc is needed.
fn c_compiler(compiler: &Compiler, target: &str) -> Result<Option<String>> {
    let named = format!("CC_{}", target.replace('-', "_"));
    if env::var_os(&named).is_some() {
        return Ok(None);
    }
    let machine = target.split('-').next().unwrap_or_default();
    if machine == compiler.arch() {
        if !process::on_path("cc") {
            bail!("no C compiler (`cc`): install gcc; one of the agent's dependencies has parts in C");
        }
        return Ok(Some("cc".into()));
    }
    let cross = format!("{machine}-linux-gnu-gcc");
    if !process::on_path(&cross) {
        bail!(
            "no C compiler for {machine} (`{cross}`): install it (Debian: gcc-{}-linux-gnu), or name another in {named}",
            machine.replace('_', "-")
        );
    }
    Ok(Some(cross))
}

/// Makes sure that the compiler has the standard library of that target.
fn ensure_std(target: &str) -> Result<()> {
    let library = compiler::target_libdir(target)?;
    if has_std(&library) {
        return Ok(());
    }
    if !process::on_path("rustup") {
        bail!("the compiler has no standard library for {target}, and rustup, which installs it, is missing");
    }
    let why = "to link the agent statically";
    progress::step(format!("standard library for {target} with rustup"), why, || {
        let mut rustup = Command::new("rustup");
        rustup.args(["target", "add", target]);
        // A server that cannot be reached shall say so quickly; the next way may work.
        rustup.env("RUSTUP_MAX_RETRIES", "1").env("RUSTUP_DOWNLOAD_TIMEOUT", "60").env("RUST_BACKTRACE", "0");
        process::capture(&mut rustup)?;
        if !has_std(&library) {
            bail!("rustup reported success, but {} holds no standard library", library.display());
        }
        Ok(())
    })
}

fn has_std(library: &Path) -> bool {
    let std = |name: &str| name.starts_with("libstd-") && name.ends_with(".rlib");
    fs::read_dir(library)
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name().to_str().is_some_and(std)))
}
