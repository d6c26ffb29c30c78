//! The test binaries in cargo's messages.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// A binary that runs tests.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Binary {
    /// Name of the package.
    pub(crate) package: String,
    /// Name of the target: the library, the program, or the file in `tests/`.
    pub(crate) target: String,
    /// Built from `tests/`, rather than the tests inside a library or program.
    pub(crate) is_integration_test: bool,
    executable: PathBuf,
    /// Directory of the package.
    directory: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

impl Binary {
    /// What to call it in messages.
    pub(crate) fn label(&self) -> String {
        if self.is_integration_test || self.package != self.target {
            format!("{} {}", self.package, self.target)
        } else {
            self.package.clone()
        }
    }

    /// A call of it in the surroundings `cargo test` gives: the package's directory and name.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.directory).env("CARGO_MANIFEST_DIR", &self.directory);
        command.env("CARGO_PKG_NAME", &self.package);
        command
    }
}

/// Reads cargo's `--message-format=json` output.
pub(crate) fn parse(messages: &str) -> Result<Vec<Binary>> {
    let mut binaries = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Message = serde_json::from_str(line).context("cargo printed an unknown message")?;
        let is_test = message.profile.is_some_and(|profile| profile.test);
        let (Some(executable), Some(target), true) = (message.executable, message.target, is_test) else {
            continue;
        };
        if message.reason != "compiler-artifact" {
            continue;
        }
        let directory = message.manifest_path.parent().unwrap_or(Path::new(".")).to_path_buf();
        binaries.push(Binary {
            package: package_name(&directory, &target),
            is_integration_test: target.kind.iter().any(|kind| kind == "test"),
            target: target.name,
            executable,
            directory,
        });
    }
    Ok(binaries)
}

/// Directories are named as packages are, but for the lab.
fn package_name(directory: &Path, target: &Target) -> String {
    match directory.file_name().and_then(|name| name.to_str()) {
        Some("tests") => super::LAB.to_owned(),
        Some(name) => name.to_owned(),
        None => target.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_binaries_are_taken() {
        let messages = r#"{"reason":"compiler-artifact","package_id":"p","manifest_path":"/c/lb-agent/Cargo.toml","target":{"kind":["lib"],"name":"lb_agent"},"profile":{"test":true},"executable":"/t/lb_agent-1"}
not json
{"reason":"compiler-artifact","manifest_path":"/c/lb-agent/Cargo.toml","target":{"kind":["bin"],"name":"lb-agent"},"profile":{"test":false},"executable":"/t/lb-agent"}
{"reason":"compiler-artifact","manifest_path":"/c/lb-agent/Cargo.toml","target":{"kind":["lib"],"name":"lb_agent"},"profile":{"test":false},"executable":null}
{"reason":"build-script-executed","package_id":"p"}
{"reason":"compiler-artifact","manifest_path":"/c/tests/Cargo.toml","target":{"kind":["test"],"name":"smoke"},"profile":{"test":true},"executable":"/t/smoke-1"}
{"reason":"build-finished","success":true}
"#;
        let binaries = parse(messages).unwrap();
        let labels: Vec<String> = binaries.iter().map(Binary::label).collect();
        assert_eq!(labels, ["lb-agent lb_agent", "lb-tests smoke"]);
        assert!(!binaries[0].is_integration_test);
        assert!(binaries[1].is_integration_test);
        assert_eq!(binaries[1].directory, Path::new("/c/tests"));
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(parse("{\"reason\": 1}").is_err());
        assert!(parse("").unwrap().is_empty());
    }
}
