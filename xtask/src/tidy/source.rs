//! Rules about the text of a file.

use std::path::Path;

use super::Finding;
use super::code;

/// A file beyond this many lines holds more than one concern.
const MAX_LINES: usize = 600;

/// Words of unfinished work, and what clippy cannot forbid. Spelled in parts, this file being checked too.
const UNFINISHED_WORDS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME")];
const UNFINISHED_CODE: &[&str] = &["todo!", "unimplemented!", "#[ignore"];

/// The one reason to ignore a test: it is the entry of a process that another test starts.
const CHILD_PROCESS: &str = concat!("#[ig", "nore = \"started as a process of its own by another test\"]");

/// The only places with `unsafe`: the programs, the calls into the kernel, the lab.
const UNSAFE_PLACES: &[&str] = &["lb-ebpf", "lb-agent/src/dataplane", "lb-agent/src/dataplane.rs", "tests"];

/// The only places of the agent that name Kubernetes' types.
const KUBERNETES_PLACES: &[&str] = &["lb-agent/src/k8s", "lb-agent/src/k8s.rs"];
const KUBERNETES_CRATES: &[&str] = &["k8s_openapi", "kube"];

/// Beginnings of paths that exist on one machine only.
const MACHINE_PATHS: &[&str] =
    &[concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")];

/// Rules for any text.
pub(super) fn check_text(text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in numbered(text) {
        if line.ends_with([' ', '\t', '\r']) {
            findings.push(Finding::new(number, "trailing whitespace"));
        }
        if let Some(word) = UNFINISHED_WORDS.iter().find(|word| code::has_word(line, word)) {
            findings
                .push(Finding::new(number, format!("{word}: finish it, or say what is not done and why")));
        }
        if let Some(path) = MACHINE_PATHS.iter().find(|path| names_path(line, path)) {
            findings.push(Finding::new(number, format!("path of one machine ({path}…)")));
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        findings.push(Finding::new(text.lines().count(), "no newline at the end"));
    }
    findings
}

/// Rules for Rust.
pub(super) fn check_rust(path: &Path, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !text.starts_with("//!") {
        findings.push(Finding::new(1, "a file opens with what it is for: `//! …`"));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        findings
            .push(Finding::new(lines, format!("{lines} lines, more than {MAX_LINES}: split it by concern")));
    }
    let code = code::only(text);
    for ((number, line), written) in numbered(&code).zip(text.split('\n')) {
        let unfinished = UNFINISHED_CODE.iter().find(|word| line.contains(**word));
        if let Some(word) = unfinished.filter(|_| written.trim() != CHILD_PROCESS) {
            findings.push(Finding::new(number, format!("`{word}`: nothing unfinished is kept")));
        }
        if code::has_word(line, "unsafe") && !within(path, UNSAFE_PLACES) {
            let message = format!("`unsafe` belongs into {}", UNSAFE_PLACES.join(", "));
            findings.push(Finding::new(number, message));
        }
        if names_kubernetes(line) && path.starts_with("lb-agent") && !within(path, KUBERNETES_PLACES) {
            findings.push(Finding::new(number, "Kubernetes' types stay within lb-agent/src/k8s"));
        }
    }
    findings
}

fn names_kubernetes(line: &str) -> bool {
    KUBERNETES_CRATES.iter().any(|name| {
        let used_as_path = line.match_indices(name).any(|(at, _)| line[at + name.len()..].starts_with("::"));
        (used_as_path && code::has_word(line, name)) || line.trim() == format!("use {name};")
    })
}

fn within(path: &Path, places: &[&str]) -> bool {
    places.iter().any(|place| path.starts_with(place))
}

/// Whether `line` holds that path from its root, and not as the middle of a longer one.
fn names_path(line: &str, path: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || "_-.}>$~".contains(c);
    line.match_indices(path).any(|(at, _)| !line[..at].chars().next_back().is_some_and(part))
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split('\n').enumerate().map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(findings: &[Finding]) -> Vec<usize> {
        findings.iter().map(|finding| finding.line).collect()
    }

    fn rust(path: &str, text: &str) -> Vec<usize> {
        lines(&check_rust(Path::new(path), text))
    }

    #[test]
    fn whitespace_and_the_last_newline() {
        assert_eq!(lines(&check_text("a \nb\t\nc\r\n")), [1, 2, 3]);
        assert_eq!(lines(&check_text("a\nb")), [2]);
        assert!(check_text("a\n\nb\n").is_empty());
        assert!(check_text("").is_empty());
    }

    #[test]
    fn unfinished_work() {
        let words: String = UNFINISHED_WORDS.iter().map(|word| format!("# {word}: x\n")).collect();
        assert_eq!(lines(&check_text(&words)), [1, 2]);
        assert!(check_text("a TODOS list\n").is_empty());
        let code: String = UNFINISHED_CODE.iter().map(|word| format!("{word}\n")).collect();
        assert_eq!(rust("a.rs", &format!("//! x\n{code}")), [2, 3, 4]);
        assert!(rust("a.rs", &format!("//! x\n{CHILD_PROCESS}\n")).is_empty());
        assert!(rust("a.rs", "//! x\n// todo! in a comment, \nlet a = \"unimplemented!\";\n").is_empty());
    }

    #[test]
    fn machine_paths() {
        for path in MACHINE_PATHS {
            assert_eq!(lines(&check_text(&format!("see {path}x\n"))), [1], "{path}");
            assert!(check_text(&format!("https://host.example{path}x\n")).is_empty(), "{path}");
            assert!(check_text(&format!("$HOME{path}x, a{path}x\n")).is_empty(), "{path}");
        }
    }

    #[test]
    fn opening_and_length() {
        assert_eq!(rust("a.rs", "mod x;\n"), [1]);
        assert_eq!(rust("a.rs", "// not documentation\n"), [1]);
        assert!(rust("a.rs", &format!("//! x\n{}", "\n".repeat(MAX_LINES - 1))).is_empty());
        assert_eq!(rust("a.rs", &format!("//! x\n{}", "\n".repeat(MAX_LINES))), [MAX_LINES + 1]);
    }

    #[test]
    fn unsafe_only_where_it_belongs() {
        let text = "//! x\n#![forbid(unsafe_code)]\n// unsafe\nlet a = \"unsafe\";\nunsafe { b() }\n";
        for path in ["lb-common/src/a.rs", "lb-agent/src/net/a.rs", "lb-agent/build.rs", "xtask/src/a.rs"] {
            assert_eq!(rust(path, text), [5], "{path}");
        }
        for path in ["lb-ebpf/src/main.rs", "lb-agent/src/dataplane/map.rs", "tests/src/netns.rs"] {
            assert!(rust(path, text).is_empty(), "{path}");
        }
    }

    #[test]
    fn kubernetes_only_behind_its_module() {
        let text = "//! x\nuse kube::Client;\nuse kube;\nlet a: k8s_openapi::A;\n// kube::b\nlet kube_proxy = x::y;\n";
        assert_eq!(rust("lb-agent/src/index.rs", text), [2, 3, 4]);
        for path in ["lb-agent/src/k8s.rs", "lb-agent/src/k8s/watch.rs", "tests/src/api.rs"] {
            assert!(rust(path, text).is_empty(), "{path}");
        }
    }
}
