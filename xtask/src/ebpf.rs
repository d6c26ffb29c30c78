//! `cargo xtask build-ebpf`: the datapath object, built with the stable compiler.
//!
//! `bpfel-unknown-none` has no precompiled `core`, so cargo builds it (`-Z build-std=core`). That flag is
//! unstable; `RUSTC_BOOTSTRAP=1` allows it for this one cargo call, the code itself is stable Rust.

mod strip;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::compiler::Compiler;
use crate::workspace::Workspace;
use crate::{core_source, linker, process, progress, remap};

/// The package with the programs.
const PACKAGE: &str = "lb-ebpf";
/// The programs that benchmarks measure them against, beside them.
const REFERENCE: &str = "reference";
/// Little endian BPF: what every machine we run on has.
const TARGET: &str = "bpfel-unknown-none";
/// The cargo profile of the programs (workspace `Cargo.toml`).
const PROFILE: &str = "bpf";

/// Everything a cargo call for the BPF target needs.
#[derive(Debug)]
pub(crate) struct BpfToolchain {
    linker: PathBuf,
    core: core_source::Library,
    flags: Vec<String>,
}

impl BpfToolchain {
    /// Finds the toolchain, fetching what is missing.
    pub(crate) fn ensure(workspace: &Workspace) -> Result<Self> {
        let compiler = Compiler::detect()?;
        let core = core_source::ensure(workspace, &compiler)?;
        let linker = linker::ensure(workspace, &compiler)?;
        let mut flags = Self::flags(&compiler);
        flags.extend(remap::flags(workspace, &compiler, core.outside_sysroot())?);
        Ok(Self { linker, core, flags })
    }

    /// A cargo call (`build`, `clippy` …) for the programs.
    pub(crate) fn cargo(&self, workspace: &Workspace, subcommand: &str) -> Command {
        let mut cargo = process::cargo();
        cargo.current_dir(workspace.root());
        cargo.args([subcommand, "--package", PACKAGE, "--bins", "--profile", PROFILE, "--target", TARGET]);
        cargo.args(["-Z", "build-std=core", "--target-dir"]).arg(workspace.bpf_build());
        cargo.env("RUSTC_BOOTSTRAP", "1");
        cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker);
        // Flags of the user's environment are for the host; they make no sense for BPF.
        cargo.env_remove("RUSTFLAGS").env_remove("RUSTC_WRAPPER").env_remove("RUSTC_WORKSPACE_WRAPPER");
        cargo.env("CARGO_ENCODED_RUSTFLAGS", self.flags.join("\x1f"));
        if let Some(root) = self.core.outside_sysroot() {
            cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", root);
        }
        cargo
    }

    fn flags(compiler: &Compiler) -> Vec<String> {
        vec![
            // aya-ebpf selects the layout of `pt_regs` and the like by it.
            format!("--cfg=bpf_target_arch=\"{}\"", compiler.arch()),
            // BTF is derived from debug information.
            "-Cdebuginfo=2".into(),
            "-Clink-arg=--btf".into(),
            // Instruction set v3 (32-bit ALU, atomics), known to every kernel since 5.1.
            "-Ctarget-cpu=v3".into(),
        ]
    }
}

/// Builds the programs and puts the object to its stable place, which is returned.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let started = Instant::now();
    let toolchain = BpfToolchain::ensure(workspace)?;
    process::run(&mut toolchain.cargo(workspace, "build"))
        .context("the datapath does not build; the compiler's words are above")?;
    let built = workspace.bpf_build().join(TARGET).join(PROFILE);
    let object = workspace.bpf_object();
    let changed = publish(&built.join(PACKAGE), &object)?;
    publish(&built.join(REFERENCE), &object.with_file_name(format!("{REFERENCE}.o")))?;
    let size = fs::metadata(&object)?.len();
    progress::note(format_args!(
        "{} ({size} bytes, {}), {:.1} s",
        object.strip_prefix(workspace.root()).unwrap_or(&object).display(),
        if changed { "new" } else { "unchanged" },
        started.elapsed().as_secs_f64()
    ));
    Ok(object)
}

/// Copies `built` to `object`, stripped, in one step, and not at all when nothing changed: the agent embeds the object
/// and would be rebuilt for a new time stamp. Returns whether it changed.
fn publish(built: &Path, object: &Path) -> Result<bool> {
    let new = fs::read(built).with_context(|| format!("cargo left no object at {}", built.display()))?;
    let new = strip::strip(&new).with_context(|| format!("strip {}", built.display()))?;
    if fs::read(object).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    let dir = object.parent().context("the object has a directory")?;
    fs::create_dir_all(dir)?;
    let mut temporary = OsString::from(object);
    temporary.push(format!(".{}", std::process::id()));
    fs::write(&temporary, &new).with_context(|| format!("write {}", Path::new(&temporary).display()))?;
    fs::rename(&temporary, object).with_context(|| format!("write {}", object.display()))?;
    Ok(true)
}
