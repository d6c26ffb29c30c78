//! bpf-linker: installed into `target/tools` in the version that fits the compiler's LLVM.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::compiler::Compiler;
use crate::workspace::Workspace;
use crate::{process, progress};

/// LLVM major version of the compiler -> the bpf-linker made for it. bpf-linker loads the LLVM that rustc
/// carries, so bitcode and linker always agree.
const VERSIONS: &[(u32, &str)] = &[(22, "0.10.3")];

/// Returns the path of a fitting bpf-linker, installing it first when needed.
pub(crate) fn ensure(workspace: &Workspace, compiler: &Compiler) -> Result<PathBuf> {
    let version = version_for(compiler)?;
    let binary = workspace.tools().join("bin/bpf-linker");
    if installed(&binary).as_deref() == Some(version) {
        return Ok(binary);
    }
    let _lock = workspace.fetch_lock()?;
    if installed(&binary).as_deref() == Some(version) {
        return Ok(binary);
    }
    let why = format!("links the datapath; the version made for LLVM {}", compiler.llvm);
    progress::step(format!("bpf-linker {version} from the crate registry"), &why, || {
        process::install(&workspace.tools(), "bpf-linker", version)
    })?;
    match installed(&binary) {
        Some(found) if found == version => Ok(binary),
        found => bail!(
            "{} reports version {found:?} after the installation of {version}; delete {} and try again",
            binary.display(),
            workspace.tools().display()
        ),
    }
}

fn version_for(compiler: &Compiler) -> Result<&'static str> {
    match VERSIONS.iter().find(|(llvm, _)| *llvm == compiler.llvm) {
        Some((_, version)) => Ok(version),
        None => bail!(
            "no bpf-linker is known for LLVM {} of Rust {}; build with Rust 1.95 (`rustup default 1.95.0`), or add \
             the release of bpf-linker made for that LLVM to VERSIONS in xtask/src/linker.rs",
            compiler.llvm,
            compiler.release
        ),
    }
}

/// The version of an installed bpf-linker, if it runs at all.
fn installed(binary: &Path) -> Option<String> {
    let output = Command::new(binary).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout)).map(str::to_owned)
}

fn parse_version(text: &str) -> Option<&str> {
    text.strip_prefix("bpf-linker ")?.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_the_program_itself() {
        assert_eq!(parse_version("bpf-linker 0.10.3 (abc)\n"), Some("0.10.3"));
        assert_eq!(parse_version("bpf-linker 0.10.3\n"), Some("0.10.3"));
        assert_eq!(parse_version("ld 2.40"), None);
    }

    #[test]
    fn an_unknown_llvm_is_explained() {
        let compiler =
            |llvm| Compiler { release: "9.9.9".into(), llvm, host: String::new(), commit: String::new() };
        assert_eq!(version_for(&compiler(22)).unwrap(), "0.10.3");
        let error = version_for(&compiler(99)).unwrap_err().to_string();
        assert!(error.contains("LLVM 99") && error.contains("rustup"), "{error}");
    }
}
