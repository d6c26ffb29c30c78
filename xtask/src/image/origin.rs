//! What an image is made of: commit and time.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use jiff::Timestamp;

use crate::process;

/// The standard variable for the time of reproducible builds, in seconds since 1970.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// Commit and time.
#[derive(Debug)]
pub(super) struct Origin {
    /// The commit; `-dirty` when the tree differs from it; `unknown` outside of a clone.
    pub(super) revision: String,
    /// Seconds since 1970: `SOURCE_DATE_EPOCH`, else the commit's time, else 0.
    pub(super) epoch: u64,
}

impl Origin {
    pub(super) fn find(root: &Path) -> Result<Self> {
        let set = env::var(EPOCH).ok().filter(|text| !text.is_empty());
        let set = set.map(|text| text.parse::<u64>().with_context(|| format!("{EPOCH}={text} is no number")));
        let epoch = set.transpose()?;
        let git = |arguments: &[&str]| {
            let text = process::capture(Command::new("git").current_dir(root).args(arguments)).ok()?;
            Some(text.trim().to_owned())
        };
        let Some(commit) = git(&["rev-parse", "HEAD"]) else {
            eprintln!("      not a git clone: the image names no revision; {EPOCH} sets its time");
            return Ok(Self { revision: "unknown".into(), epoch: epoch.unwrap_or(0) });
        };
        let clean =
            git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| text.is_empty());
        let time = git(&["log", "-1", "--format=%ct"]).and_then(|text| text.parse().ok());
        let revision = if clean { commit } else { format!("{commit}-dirty") };
        Ok(Self { revision, epoch: epoch.or(time).unwrap_or(0) })
    }

    /// The time as RFC 3339 has it.
    pub(super) fn created(&self) -> Result<String> {
        let seconds = i64::try_from(self.epoch).with_context(|| format!("{EPOCH} is out of range"))?;
        Ok(Timestamp::from_second(seconds).with_context(|| format!("{EPOCH} is out of range"))?.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        let at = |epoch| Origin { revision: String::new(), epoch }.created();
        assert_eq!(at(0).unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(at(1_795_261_088).unwrap(), "2026-11-21T11:38:08Z");
        assert!(at(u64::MAX).is_err());
    }
}
