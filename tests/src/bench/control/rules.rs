//! As many Services as rules of the shape that kube-proxy writes, loaded into an empty network namespace.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tempfile::NamedTempFile;

use crate::bench::balancer;
use crate::netns::{Namespace, run_in};

/// Rules for so many Services, all but one with one endpoint, in files.
pub(super) struct Rules {
    nft: NamedTempFile,
    iptables: NamedTempFile,
}

impl Rules {
    /// Writes the files.
    ///
    /// # Errors
    /// When that fails.
    pub(super) fn new(services: u32) -> Result<Self> {
        let file = |text: String| -> Result<NamedTempFile> {
            let mut file = NamedTempFile::with_prefix("lbt-rules")?;
            file.write_all(text.as_bytes())?;
            Ok(file)
        };
        let [nft, iptables] = balancer::rules(services);
        Ok(Self { nft: file(nft)?, iptables: file(iptables)? })
    }

    /// How long `nft -f` takes.
    ///
    /// # Errors
    /// When it is not installed, or the kernel refuses.
    pub(super) fn nft(&self) -> Result<Duration> {
        load("nft", &["-f"], self.nft.path())
    }

    /// How long `iptables-legacy-restore` takes.
    ///
    /// # Errors
    /// When it is not installed, or the kernel refuses.
    pub(super) fn iptables(&self) -> Result<Duration> {
        load("iptables-legacy-restore", &[], self.iptables.path())
    }
}

fn load(program: &str, arguments: &[&str], rules: &Path) -> Result<Duration> {
    let namespace = Namespace::create(&format!("lbt-rules-{}", std::process::id()), &[])?;
    let (took, output) = run_in(&namespace, || {
        let begin = Instant::now();
        let output = Command::new(program).args(arguments).arg(rules).output();
        (begin.elapsed(), output)
    });
    let output = output.with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(took)
}
