//! The ready file: there exactly while the agent serves all it knows of.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// A file that says that the agent is ready; without a path, nothing.
#[derive(Clone, Debug)]
pub(super) struct ReadyFile(Option<PathBuf>);

impl ReadyFile {
    /// Not ready yet: a file left from before goes.
    pub(super) fn new(path: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(path) = path {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("removing the old ready file {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(Self(path.map(Path::to_owned)))
    }

    /// Ready.
    pub(super) fn write(&self) -> anyhow::Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        fs::write(path, "ready\n").with_context(|| format!("writing the ready file {}", path.display()))
    }

    /// About to end.
    pub(super) fn remove(&self) {
        if let Some(path) = &self.0 {
            // What cannot be removed now is removed by the next start.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_there_exactly_while_ready() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ready");
        fs::write(&path, "from before").unwrap();
        let ready = ReadyFile::new(Some(&path)).unwrap();
        assert!(!path.exists());
        ready.write().unwrap();
        assert!(path.exists());
        ready.remove();
        assert!(!path.exists());
    }
}
