//! Which compiler runs: its version, its LLVM and where it lives.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process;

/// What the BPF build must know of the compiler.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Compiler {
    /// Release, such as `1.95.0`; the source of `core` must be of exactly this one.
    pub(crate) release: String,
    /// Major version of its LLVM; bpf-linker must be made for the same.
    pub(crate) llvm: u32,
    /// Target triple of the host.
    pub(crate) host: String,
    /// The commit it was built from, else its release: what stands in paths of its own libraries.
    pub(crate) commit: String,
}

impl Compiler {
    /// Asks the compiler cargo uses.
    pub(crate) fn detect() -> Result<Self> {
        let text = process::capture(rustc().arg("-vV"))?;
        Self::parse(&text).with_context(|| format!("`rustc -vV` printed something unexpected:\n{text}"))
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
        };
        let release = field("release")?;
        let commit = field("commit-hash").filter(|hash| *hash != "unknown").unwrap_or(release);
        Some(Self {
            release: release.to_owned(),
            commit: commit.to_owned(),
            llvm: field("LLVM version")?.split('.').next()?.parse().ok()?,
            host: field("host")?.to_owned(),
        })
    }

    /// Architecture of the host, as `bpf_target_arch` names it.
    pub(crate) fn arch(&self) -> &str {
        match self.host.split('-').next().unwrap_or_default() {
            riscv if riscv.starts_with("riscv64") => "riscv64",
            arch => arch,
        }
    }
}

/// The source of the standard library inside the compiler's own directory, where `rustup component add
/// rust-src` puts it.
pub(crate) fn sysroot_library() -> Result<PathBuf> {
    let sysroot = process::capture(rustc().args(["--print", "sysroot"]))?;
    Ok(PathBuf::from(sysroot.trim()).join("lib/rustlib/src/rust/library"))
}

/// Where the compiler keeps the libraries of a target, whether it has them or not.
pub(crate) fn target_libdir(target: &str) -> Result<PathBuf> {
    let directory = process::capture(rustc().args(["--print", "target-libdir", "--target", target]))?;
    Ok(PathBuf::from(directory.trim()))
}

fn rustc() -> Command {
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_text_is_understood() {
        let text = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\n\
                    release: 1.95.0\nLLVM version: 22.1.2\n";
        let compiler = Compiler {
            release: "1.95.0".into(),
            llvm: 22,
            host: "x86_64-unknown-linux-gnu".into(),
            commit: "1.95.0".into(),
        };
        assert_eq!(compiler.arch(), "x86_64");
        assert_eq!(Compiler::parse(text), Some(compiler));
        let commit = |line: &str| Compiler::parse(&format!("{line}\n{text}")).unwrap().commit;
        assert_eq!(commit("commit-hash: 59807616"), "59807616");
        assert_eq!(commit("commit-hash: unknown"), "1.95.0");
        assert_eq!(Compiler::parse("release: 1.95.0\n"), None);
    }
}
