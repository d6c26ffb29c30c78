//! Where things are: the workspace, cargo's target directory and xtask's own places in it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The directories every task works with.
///
/// What xtask fetches or builds for the BPF target lies under `<workspace>/target` whatever `CARGO_TARGET_DIR`
/// says, so that every build of this clone shares it and `lb-agent/build.rs` finds the object at one place.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Finds the workspace from the manifest cargo is running, which also holds for a moved clone.
    pub(crate) fn locate() -> Result<Self> {
        let manifest_dir =
            env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest_dir).parent().context("xtask lies in no workspace")?.to_path_buf();
        Ok(Self { root })
    }

    /// The root of the clone.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where cargo puts host builds.
    pub(crate) fn cargo_target(&self) -> PathBuf {
        match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) if !dir.is_empty() => self.root.join(dir),
            _ => self.own_target(),
        }
    }

    /// Programs xtask installs for itself (`bin/` inside).
    pub(crate) fn tools(&self) -> PathBuf {
        self.own_target().join("tools")
    }

    /// Sources of the standard library, by compiler version.
    pub(crate) fn rust_src(&self) -> PathBuf {
        self.own_target().join("rust-src")
    }

    /// Cargo's target directory for the BPF build, apart from that of the host so that neither waits for nor
    /// invalidates the other.
    pub(crate) fn bpf_build(&self) -> PathBuf {
        self.own_target().join("bpf-build")
    }

    /// The finished BPF object.
    pub(crate) fn bpf_object(&self) -> PathBuf {
        self.own_target().join("bpf/lb-ebpf.o")
    }

    /// Builds, inputs and crashes of the fuzz targets.
    pub(crate) fn fuzz(&self) -> PathBuf {
        self.own_target().join("fuzz")
    }

    /// Finished images.
    pub(crate) fn image(&self) -> PathBuf {
        self.own_target().join("image")
    }

    /// Takes the lock that keeps two xtasks of one clone from fetching the same thing at once. It is released
    /// when the returned file is dropped, also by a crash.
    pub(crate) fn fetch_lock(&self) -> Result<fs::File> {
        let path = self.own_target().join(".xtask-fetch.lock");
        fs::create_dir_all(self.own_target())?;
        let file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
        if file.try_lock().is_err() {
            eprintln!("waiting for another cargo xtask that is fetching tools for this clone");
            file.lock().with_context(|| format!("lock {}", path.display()))?;
        }
        Ok(file)
    }

    fn own_target(&self) -> PathBuf {
        self.root.join("target")
    }
}
