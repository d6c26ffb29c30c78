//! Where reports are kept: the last one of each benchmark below `target/bench`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Benchmark;
use super::report::Report;

/// Where the last report of a benchmark lies: `bench/NAME.json` in cargo's target directory.
pub fn last(benchmark: Benchmark) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")), PathBuf::from);
    target.join("bench").join(benchmark.name()).with_extension("json")
}

/// Writes a report as JSON, with the directories above it.
///
/// # Errors
/// When the file cannot be written.
pub fn save(report: &Report, path: &Path) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    let json = serde_json::to_string_pretty(report)?;
    fs::write(path, format!("{json}\n")).with_context(|| format!("write {}", path.display()))
}

/// Reads a report.
///
/// # Errors
/// When there is none, or something else.
pub fn read(path: &Path) -> Result<Report> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is no report of `cargo xtask bench`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Row;

    #[test]
    fn what_is_kept_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bench/packet.json");
        let report = Report::new("packet", 1, vec![Row::new("a", "ns", &[1.0])]);
        save(&report, &path).unwrap();
        assert_eq!(read(&path).unwrap(), report);
        fs::write(&path, "{}").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("no report"), "anything is a report");
    }
}
