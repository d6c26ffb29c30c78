//! The outcome in three shapes: a table, a page, an object.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::absent::{ABSENT, Absent};
use super::record::Run;
use super::{Listed, name_of};
use crate::progress;

/// How much of a title the terminal's table shows.
const WIDTH: usize = 88;

/// What all runs came to.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    kernel: String,
    runs: usize,
    passed: usize,
    failed: usize,
    /// Until a change was visible, over all runs that measured it, in milliseconds.
    visible_median_ms: Option<f64>,
    visible_longest_ms: Option<f64>,
    titles: Vec<Title>,
}

/// What the runs of a title came to.
#[derive(Debug, Serialize)]
struct Title {
    file: String,
    suite: String,
    title: String,
    runs: usize,
    passed: usize,
    /// The slowest run.
    seconds: f64,
    /// The longest time until a change was visible.
    visible_ms: Option<f64>,
    failures: Vec<Failure>,
}

#[derive(Debug, Serialize)]
struct Failure {
    place: String,
    error: String,
}

impl Report {
    /// Puts the runs into the order of the list. A run that is listed and not recorded has failed.
    pub(super) fn new(kernel: &str, listed: &[Listed], runs: &[Run]) -> Self {
        let recorded: BTreeMap<Listed, &Run> = runs.iter().map(|run| (name_of(run), run)).collect();
        let mut titles: Vec<Title> = Vec::new();
        for name in listed {
            let run = recorded.get(name).map_or_else(|| never_ended(name), |run| Run::clone(run));
            let same = |title: &&mut Title| title.suite == run.suite && title.title == run.title;
            let title = match titles.iter_mut().find(same) {
                Some(title) => title,
                None => {
                    titles.push(Title {
                        file: run.file.clone(),
                        suite: run.suite.clone(),
                        title: run.title.clone(),
                        runs: 0,
                        passed: 0,
                        seconds: 0.0,
                        visible_ms: None,
                        failures: Vec::new(),
                    });
                    let last = titles.len() - 1;
                    &mut titles[last]
                }
            };
            title.runs += 1;
            title.passed += usize::from(run.passed);
            title.seconds = title.seconds.max(run.seconds);
            title.visible_ms = title.visible_ms.into_iter().chain(run.visible_ms).reduce(f64::max);
            if !run.passed {
                let error = run.error.unwrap_or_default();
                title.failures.push(Failure { place: run.place, error });
            }
        }
        let mut visible: Vec<f64> = runs.iter().filter_map(|run| run.visible_ms).collect();
        visible.sort_by(f64::total_cmp);
        let passed = titles.iter().map(|title| title.passed).sum();
        Self {
            kernel: kernel.to_owned(),
            runs: listed.len(),
            passed,
            failed: listed.len() - passed,
            visible_median_ms: visible.get(visible.len() / 2).copied(),
            visible_longest_ms: visible.last().copied(),
            titles,
        }
    }

    /// Whether something ran, and all of it passed.
    pub(super) fn passed(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    /// One line.
    pub(super) fn summary(&self) -> String {
        let titles = self.titles.len();
        format!(
            "{titles} title{} in {} runs: {} passed, {} failed, 0 skipped",
            if titles == 1 { "" } else { "s" },
            self.runs,
            self.passed,
            self.failed
        )
    }

    /// The files in the order of their first title, each with its titles.
    fn by_file(&self) -> Vec<(&str, Vec<&Title>)> {
        let mut files: Vec<(&str, Vec<&Title>)> = Vec::new();
        for title in &self.titles {
            match files.iter_mut().find(|(file, _)| *file == title.file) {
                Some((_, titles)) => titles.push(title),
                None => files.push((&title.file, vec![title])),
            }
        }
        files
    }

    /// For the terminal.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        for (file, titles) in self.by_file() {
            // Writing to a string does not fail.
            let _written = writeln!(text, "\n{file}");
            for title in titles {
                let mark = if title.failures.is_empty() {
                    progress::paint("32;1", "  ok")
                } else {
                    progress::paint("31;1", "FAIL")
                };
                let _written = writeln!(
                    text,
                    "{mark}  {:<WIDTH$}  {:>5}  {:>6}  {:>9}",
                    shortened(&title.title),
                    format!("{}/{}", title.passed, title.runs),
                    format!("{:.1} s", title.seconds),
                    visible(title.visible_ms),
                );
                for failure in &title.failures {
                    let _written =
                        writeln!(text, "      {{{}}} {}", failure.place, first_line(&failure.error));
                }
            }
        }
        text.push_str(
            "\ncolumns: title, runs passed, slowest run, longest time until a change was visible\n",
        );
        text
    }

    /// `docs/conformance.md`.
    pub(super) fn page(&self) -> String {
        let mut text = format!(
            "# Conformance\n\n\
             Written by `cargo xtask conformance`, which runs what Kubernetes' own end-to-end tests ask of a Service proxy \
             over real\nsockets on this machine's kernel: three nodes, pods, node processes and hosts outside, in both pod \
             network shapes and both\nforwarding modes where these can matter, with XDP where clients come from outside, for \
             IPv4 and IPv6. Titles are\nupstream's (`test/e2e/network/`).\n\n\
             Linux {}. {}.\n",
            self.kernel,
            self.summary(),
        );
        if let (Some(median), Some(longest)) = (self.visible_median_ms, self.visible_longest_ms) {
            let _written = writeln!(
                text,
                "A change was visible to clients after {median:.1} ms in the median run, {longest:.0} ms at the longest; \
                 upstream allows 30 s.",
            );
        }
        for (file, titles) in self.by_file() {
            let _written = write!(
                text,
                "\n## {file}\n\n| title | passed | slowest run | visible after |\n|---|---|---|---|\n"
            );
            for title in titles {
                let _written = writeln!(
                    text,
                    "| {} {} | {} of {} | {:.1} s | {} |",
                    title.suite,
                    title.title.replace('|', "\\|"),
                    title.passed,
                    title.runs,
                    title.seconds,
                    visible(title.visible_ms),
                );
            }
            let failures = self.titles.iter().filter(|title| title.file == file);
            for title in failures {
                for failure in &title.failures {
                    let _written = write!(
                        text,
                        "\nFailed: {} {{{}}}: {}\n",
                        title.title,
                        failure.place,
                        first_line(&failure.error)
                    );
                }
            }
        }
        text.push_str("\n## Not among these\n");
        for Absent { why, titles } in ABSENT {
            let _written = write!(text, "\n{why}:\n\n");
            for (file, title) in *titles {
                let _written = writeln!(text, "- {file}: {title}");
            }
        }
        text
    }

    /// For `-o json`.
    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }
}

/// A run that the suite listed and wrote nothing about.
fn never_ended(name: &str) -> Run {
    let (rest, place) = name.rsplit_once(" {").unwrap_or((name, ""));
    let (suite, title) = rest.split_once(" should").unwrap_or(("", rest));
    Run {
        file: "runs that never ended".to_owned(),
        suite: suite.to_owned(),
        title: if suite.is_empty() { title.to_owned() } else { format!("should{title}") },
        place: place.trim_end_matches('}').to_owned(),
        passed: false,
        seconds: 0.0,
        visible_ms: None,
        error: Some("the suite ended before it".to_owned()),
    }
}

fn visible(milliseconds: Option<f64>) -> String {
    milliseconds.map_or_else(String::new, |milliseconds| format!("{milliseconds:.1} ms"))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn shortened(title: &str) -> String {
    if title.chars().count() <= WIDTH {
        return title.to_owned();
    }
    let begin: String = title.chars().take(WIDTH - 1).collect();
    format!("{begin}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(title: &str, place: &str, passed: bool, visible_ms: Option<f64>) -> Run {
        Run {
            file: "service.go".into(),
            suite: "Services".into(),
            title: title.into(),
            place: place.into(),
            passed,
            seconds: 0.25,
            visible_ms,
            error: (!passed).then(|| "saw nothing\nand more".into()),
        }
    }

    #[test]
    fn runs_of_a_title_are_one_row_in_the_order_of_the_list() {
        // The record is in the order in which runs ended.
        let runs = [
            run("should b", "routed, stack", true, Some(9.0)),
            run("should a", "bridged, stack", true, None),
            run("should a", "routed, stack", true, Some(4.0)),
        ];
        let listed = [
            "Services should a {routed, stack}",
            "Services should b {routed, stack}",
            "Services should a {bridged, stack}",
        ]
        .map(str::to_owned);
        let report = Report::new("6.18", &listed, &runs);
        assert!(report.passed());
        assert_eq!(report.summary(), "2 titles in 3 runs: 3 passed, 0 failed, 0 skipped");
        let page = report.page();
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| Services")).collect();
        assert_eq!(
            rows,
            [
                "| Services should a | 2 of 2 | 0.2 s | 4.0 ms |",
                "| Services should b | 1 of 1 | 0.2 s | 9.0 ms |"
            ]
        );
        assert!(page.contains("9.0 ms in the median run, 9 ms at the longest"), "{page}");
    }

    #[test]
    fn failures_are_named_and_what_never_ended_has_failed() {
        let runs = [run("should a", "routed, stack", false, None)];
        let listed =
            ["Services should a {routed, stack}", "Services should b {routed, stack}"].map(str::to_owned);
        let report = Report::new("6.18", &listed, &runs);
        assert!(!report.passed());
        assert_eq!((report.passed, report.failed), (0, 2));
        assert!(report.table().contains("{routed, stack} saw nothing\n"));
        assert!(report.page().contains("Failed: should b {routed, stack}: the suite ended before it"));
        assert!(
            report.json().unwrap().contains("\"and more\"") || report.json().unwrap().contains("and more")
        );
    }

    #[test]
    fn nothing_is_no_success() {
        assert!(!Report::new("6.18", &[], &[]).passed());
    }
}
