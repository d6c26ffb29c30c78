//! Licences of everything in the dependency graph, held against the list in `deny.toml`.
//!
//! cargo-deny does this and more (`cargo xtask lint --deny`), but takes minutes to install; this takes none.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use spdx::{Expression, ParseMode};

use crate::compiler::Compiler;
use crate::process;
use crate::workspace::Workspace;

/// The part of `deny.toml` that is about licences.
#[derive(Debug, Deserialize)]
struct Deny {
    licenses: Allowed,
}

#[derive(Debug, Default, Deserialize)]
struct Allowed {
    allow: BTreeSet<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

#[derive(Debug, Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
}

/// Checks every package of the graph on this platform.
///
/// # Errors
/// Naming each package whose licence is missing, unreadable or not allowed.
pub(crate) fn check(workspace: &Workspace) -> Result<usize> {
    let path = workspace.root().join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let deny: Deny = toml::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
    let host = Compiler::detect()?.host;
    let mut cargo = process::cargo();
    cargo.current_dir(workspace.root());
    cargo.args(["metadata", "--format-version", "1", "--filter-platform", &host]);
    let metadata: Metadata = serde_json::from_str(&process::capture(&mut cargo)?)?;
    let bad: Vec<String> = metadata
        .packages
        .iter()
        .filter_map(|package| {
            let problem = deny.licenses.problem(package)?;
            Some(format!("{} {}: {problem}", package.name, package.version))
        })
        .collect();
    if !bad.is_empty() {
        bail!("licences that deny.toml does not allow:\n  {}", bad.join("\n  "));
    }
    Ok(metadata.packages.len())
}

impl Allowed {
    fn problem(&self, package: &Package) -> Option<String> {
        let Some(license) = &package.license else { return Some("names no licence".into()) };
        let expression = match Expression::parse_mode(license, ParseMode::LAX) {
            Ok(expression) => expression,
            Err(error) => return Some(format!("{license}: {}", error.reason)),
        };
        let satisfied = expression.evaluate(|requirement| {
            let wanted = requirement.to_string();
            let excepted = self
                .exceptions
                .iter()
                .any(|exception| exception.name == package.name && exception.allow.contains(&wanted));
            excepted || self.allow.contains(&wanted)
        });
        (!satisfied).then(|| license.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_held_against_the_list() {
        let allowed = Allowed {
            allow: ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(Into::into).into(),
            exceptions: vec![Exception { name: "ours".into(), allow: ["GPL-2.0-only".into()].into() }],
        };
        let problem = |name: &str, license: Option<&str>| {
            let (name, version) = (name.to_owned(), "1.0.0".to_owned());
            allowed.problem(&Package { name, version, license: license.map(Into::into) })
        };
        for fine in [
            "MIT",
            "MIT/Apache-2.0",
            "Apache-2.0 / MIT",
            "Unlicense OR MIT",
            "(MIT OR GPL-3.0-only) AND Apache-2.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert_eq!(problem("x", Some(fine)), None, "{fine}");
        }
        for bad in ["GPL-3.0-only", "MIT AND GPL-3.0-only", "GPL-2.0-only", "no such licence"] {
            assert!(problem("x", Some(bad)).is_some(), "{bad}");
        }
        assert!(problem("x", None).is_some());
        assert_eq!(problem("ours", Some("GPL-2.0-only")), None);
    }
}
