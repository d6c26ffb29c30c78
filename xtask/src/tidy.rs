//! `cargo xtask tidy`: rules of the house that neither rustfmt nor clippy know.
//!
//! - `source`: what a file may contain, by line.
//! - `manifest`: what a `Cargo.toml` may depend on.
//! - `code`: Rust text with comments and literals blanked, so that rules about code see only code.

mod code;
mod manifest;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::progress;
use crate::workspace::Workspace;

/// Directories that are no part of the project.
const SKIPPED: &[&str] = &[".git", "target", "kube-captures"];

/// Text files by extension; `run` has none. JSON is left out: it is recorded, byte for byte.
const TEXT: &[&str] = &["rs", "toml", "md", "yaml", "yml", "sh", "txt"];

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// Line, from 1.
    line: usize,
    message: String,
}

impl Finding {
    fn new(line: usize, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}

/// Checks every file of the clone.
///
/// # Errors
/// When any rule is broken; each place has been printed by then.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut files = Vec::new();
    collect(workspace.root(), &mut files)?;
    files.sort();
    let mut findings = 0;
    for file in &files {
        let Ok(text) = fs::read_to_string(file) else {
            continue; // not text
        };
        let relative = file.strip_prefix(workspace.root())?;
        for finding in check(relative, &text) {
            eprintln!("{}:{}: {}", relative.display(), finding.line, finding.message);
            findings += 1;
        }
    }
    if findings > 0 {
        bail!("{findings} broken rules");
    }
    progress::note(format_args!("{} files", files.len()));
    Ok(())
}

/// Everything that is wrong with one file. `path` is relative to the workspace.
fn check(path: &Path, text: &str) -> Vec<Finding> {
    let mut findings = source::check_text(text);
    if path.extension().is_some_and(|extension| extension == "rs") {
        findings.extend(source::check_rust(path, text));
    }
    if path.ends_with("Cargo.toml") {
        findings.extend(manifest::check(path, text));
    }
    findings.sort_by_key(|finding| finding.line);
    findings
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            if !SKIPPED.contains(&entry.file_name().to_string_lossy().as_ref()) {
                collect(&path, files)?;
            }
        } else if kind.is_file() && is_text(&path) {
            files.push(path);
        }
    }
    Ok(())
}

fn is_text(path: &Path) -> bool {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some(extension) => TEXT.contains(&extension),
        None => path.parent().and_then(Path::file_name).is_some_and(|parent| parent == ".ci"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_go_by_the_kind_of_file() {
        let broken = "fn main() {}\n";
        assert_eq!(check(Path::new("a.rs"), broken).len(), 1);
        assert!(check(Path::new("a.md"), broken).is_empty());
        assert_eq!(check(Path::new("x/Cargo.toml"), "[dependencies]\nx = \"1\"\n").len(), 1);
        assert!(check(Path::new("x/Other.toml"), "[dependencies]\nx = \"1\"\n").is_empty());
    }

    #[test]
    fn text_files() {
        for path in ["a/b.rs", "README.md", ".ci/run"] {
            assert!(is_text(Path::new(path)), "{path}");
        }
        for path in ["a.png", "LICENSE-APACHE", "run"] {
            assert!(!is_text(Path::new(path)), "{path}");
        }
    }
}
