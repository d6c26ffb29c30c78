//! Rules about dependencies, read from the manifests themselves: cargo no longer shows where a version came from.

use std::path::Path;

use toml::{Table, Value};

use super::Finding;

const KINDS: &[&str] = &["dependencies", "dev-dependencies", "build-dependencies"];

/// What `lb-common` may depend on outside of its tests: it is compiled into the programs too.
const OF_LB_COMMON: &[&str] = &["aya"];

/// Checks one manifest. The workspace's own names no dependency by itself.
pub(super) fn check(path: &Path, text: &str) -> Vec<Finding> {
    let manifest: Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![Finding::new(1, format!("not TOML: {error}"))],
    };
    let mut findings = Vec::new();
    for (kind, name, dependency) in dependencies(&manifest) {
        let mut broken = |message: String| findings.push(Finding::new(line_of(text, name), message));
        if !flag(dependency, "workspace") {
            broken(format!("`{name}`: versions are kept in the workspace's Cargo.toml (`workspace = true`)"));
        }
        if path.starts_with("lb-common") && kind != "dev-dependencies" {
            if !OF_LB_COMMON.contains(&name) {
                broken(format!("`{name}`: lb-common is part of the programs and depends on nothing"));
            } else if !flag(dependency, "optional") {
                broken(format!("`{name}`: only the user side has it, so it is optional"));
            }
        }
    }
    findings
}

/// All dependencies: kind, name, definition; those of `target.….` too.
fn dependencies(manifest: &Table) -> Vec<(&'static str, &str, &Value)> {
    let targets = manifest.get("target").and_then(Value::as_table);
    let targets = targets.into_iter().flat_map(|targets| targets.values().filter_map(Value::as_table));
    let mut all = Vec::new();
    for table in std::iter::once(manifest).chain(targets) {
        for kind in KINDS {
            let found = table.get(*kind).and_then(Value::as_table);
            all.extend(
                found.into_iter().flatten().map(|(name, dependency)| (*kind, name.as_str(), dependency)),
            );
        }
    }
    all
}

fn flag(dependency: &Value, name: &str) -> bool {
    dependency.get(name).and_then(Value::as_bool).unwrap_or(false)
}

/// The first line that defines that key.
fn line_of(text: &str, key: &str) -> usize {
    let defines = |line: &str| {
        line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(['=', '.']))
    };
    text.lines().position(defines).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        check(Path::new(path), text).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn every_version_is_the_workspaces() {
        let text = "[dependencies]\na.workspace = true\nb = { workspace = true, features = [\"x\"] }\nc = \"1\"\n\
                    d = { path = \"../d\" }\n[dev-dependencies]\ne = { version = \"1\" }\n[build-dependencies]\nf = \"1\"\n\
                    [target.'cfg(unix)'.dependencies]\ng = \"1\"\n";
        let mut found = lines("x/Cargo.toml", text);
        found.sort_unstable();
        assert_eq!(found, [4, 5, 7, 9, 11]);
        assert!(lines("Cargo.toml", "[workspace.dependencies]\na = \"1\"\n").is_empty());
    }

    #[test]
    fn lb_common_depends_on_nothing() {
        let path = "lb-common/Cargo.toml";
        let fine = "[dependencies]\naya = { workspace = true, optional = true }\n[dev-dependencies]\np.workspace = true\n";
        assert!(lines(path, fine).is_empty());
        assert_eq!(lines(path, "[dependencies]\naya.workspace = true\n"), [2]);
        assert_eq!(lines(path, "[dependencies]\nserde = { workspace = true, optional = true }\n"), [2]);
        assert_eq!(lines(path, "[build-dependencies]\ncc.workspace = true\n"), [2]);
    }

    #[test]
    fn broken_toml_is_told() {
        assert_eq!(lines("Cargo.toml", "[dependencies\n"), [1]);
    }
}
