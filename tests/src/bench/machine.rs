//! What a measurement was taken on.

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// Machine, kernel and commit of a measurement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the processor, as the kernel has it.
    pub processor: String,
    /// Processors online.
    pub cores: usize,
    /// Release of the kernel.
    pub kernel: String,
    /// Commit of this project, with a `+` when files differed from it; `unknown` outside a clone.
    pub commit: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            processor: name.map_or("unknown", |(_, name)| name.trim()).to_owned(),
            // Not those that this thread may run on: it may be pinned.
            cores: aya::util::nr_cpus().unwrap_or(1),
            kernel: kernel.trim().to_owned(),
            commit: commit().unwrap_or_else(|| "unknown".to_owned()),
        }
    }
}

fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { commit } else { format!("{commit}+") })
}
