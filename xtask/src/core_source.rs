//! The source of `core` for exactly the running compiler: found, or fetched once.
//!
//! In this order: `LB_RUST_SRC`, what `rustup component add rust-src` installed earlier, Debian's installed
//! `rust-src`, what an earlier run put under `target/rust-src`, then rustup, then Debian's mirror.

mod apt;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::compiler::{self, Compiler};
use crate::workspace::Workspace;
use crate::{process, progress};

/// Names a directory `library` of a Rust source tree to use instead of fetching one.
const OVERRIDE: &str = "LB_RUST_SRC";

const WHY: &str = "source of `core`, which cargo builds for the BPF target";

/// A directory `library` of a Rust source tree.
#[derive(Debug)]
pub(crate) enum Library {
    /// In the compiler's own directory, where cargo looks by itself.
    Sysroot,
    /// Elsewhere; cargo has to be told.
    At(PathBuf),
}

impl Library {
    /// The directory to tell cargo, if any.
    pub(crate) fn outside_sysroot(&self) -> Option<&Path> {
        match self {
            Self::Sysroot => None,
            Self::At(path) => Some(path),
        }
    }
}

/// Finds the source, fetching it when it is nowhere.
pub(crate) fn ensure(workspace: &Workspace, compiler: &Compiler) -> Result<Library> {
    if let Some(dir) = env::var_os(OVERRIDE).filter(|dir| !dir.is_empty()) {
        let dir = PathBuf::from(dir);
        if !complete(&dir) {
            bail!("{OVERRIDE}={} holds no `core/src/lib.rs` and `Cargo.lock`", dir.display());
        }
        return Ok(Library::At(dir));
    }
    let sysroot = compiler::sysroot_library()?;
    let fetched = workspace.rust_src().join(&compiler.release).join("library");
    if let Some(found) = present(&sysroot, &fetched, compiler) {
        return Ok(found);
    }
    let _lock = workspace.fetch_lock()?;
    if let Some(found) = present(&sysroot, &fetched, compiler) {
        return Ok(found);
    }
    let by_rustup = match from_rustup(&sysroot) {
        Ok(()) => return Ok(Library::Sysroot),
        Err(error) => error,
    };
    eprintln!("      {}", cause(&by_rustup));
    match apt::fetch(&workspace.rust_src(), &compiler.release, &fetched) {
        Ok(()) => Ok(Library::At(fetched)),
        Err(by_apt) => bail!(
            "the source of `core` for Rust {} could not be had.\n  rustup: {by_rustup:#}\n  Debian: {by_apt:#}\n\
             Connect this machine once and run the same command again, or unpack the `library` directory of the Rust \
             {} source anywhere and name it: {OVERRIDE}=/path/to/library cargo xtask build-ebpf",
            compiler.release,
            compiler.release
        ),
    }
}

fn present(sysroot: &Path, fetched: &Path, compiler: &Compiler) -> Option<Library> {
    if complete(sysroot) {
        return Some(Library::Sysroot);
    }
    let installed = PathBuf::from(format!("/usr/src/rustc-{}/library", compiler.release));
    [installed, fetched.to_path_buf()].into_iter().find(|dir| complete(dir)).map(Library::At)
}

fn complete(library: &Path) -> bool {
    library.join("core/src/lib.rs").is_file() && library.join("Cargo.lock").is_file()
}

fn from_rustup(sysroot: &Path) -> Result<()> {
    if !process::on_path("rustup") {
        bail!("rustup is not installed");
    }
    progress::step("rust-src with rustup", WHY, || {
        let mut rustup = Command::new("rustup");
        rustup.args(["component", "add", "rust-src"]);
        // A server that cannot be reached shall say so quickly; the next way may work.
        rustup.env("RUSTUP_MAX_RETRIES", "0").env("RUSTUP_DOWNLOAD_TIMEOUT", "30").env("RUST_BACKTRACE", "0");
        process::capture(&mut rustup)?;
        if !complete(sysroot) {
            bail!("rustup reported success, but {} is not complete", sysroot.display());
        }
        Ok(())
    })
}

/// What failed and the cause, out of a chain that may tell every layer in between.
fn cause(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let line = text.lines().last().unwrap_or_default().trim();
    let parts: Vec<&str> = line.split(": ").collect();
    match parts.as_slice() {
        [first, second, _, .., last] => format!("{first}: {second}: … {last}"),
        _ => line.to_owned(),
    }
}

/// Unpacks the `library` directory out of a Debian package to `destination`, all or nothing.
fn unpack(package: &Path, release: &str, destination: &Path) -> Result<()> {
    let parent = destination.parent().context("the destination has a directory")?;
    let scratch = parent.with_extension("unpacking");
    if scratch.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    fs::create_dir_all(&scratch)?;
    let archive = scratch.join("data.tar");
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.arg("--fsys-tarfile").arg(package).stdout(fs::File::create(&archive)?);
    process::run(&mut dpkg)?;
    let member = format!("./usr/src/rustc-{release}/library");
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--strip-components=4").arg("--file").arg(&archive).arg("--directory");
    process::capture(tar.arg(&scratch).arg("--no-same-owner").arg(&member))?;
    fs::remove_file(&archive)?;
    if !complete(&scratch.join("library")) {
        bail!("{} holds no complete source of `core`", package.display());
    }
    if parent.exists() {
        fs::remove_dir_all(parent)?;
    }
    fs::rename(&scratch, parent).with_context(|| format!("move to {}", parent.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_chain_is_told_by_its_ends() {
        let told = |text: &str| cause(&anyhow::anyhow!(text.to_owned()));
        assert_eq!(told("a: b: c: d: e"), "a: b: … e");
        assert_eq!(told("info: x\nerror: no such thing"), "error: no such thing");
        assert_eq!(told("rustup is not installed"), "rustup is not installed");
    }
}
