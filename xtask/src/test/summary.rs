//! Totals over all binaries, and the closing line.

use std::process::ExitCode;

use super::output::Output;
use super::watch::Ended;
use crate::progress;

/// What all tests came to.
#[derive(Debug, Default)]
pub(super) struct Summary {
    passed: usize,
    failed: usize,
    failures: Vec<String>,
    /// What the failed tests said, told again at the end: what came in between fills screens.
    reports: Vec<String>,
}

/// How many lines of what a binary's failed tests said are told again at the end.
const REPORT_LINES: usize = 80;

impl Summary {
    /// Adds one binary's outcome and returns a line about it.
    pub(super) fn add(&mut self, label: &str, output: &Output, ended: &Ended) -> String {
        self.passed += output.passed;
        self.failed += output.failed;
        self.failures.extend(output.failures.iter().map(|name| format!("{label}: {name}")));
        if output.failed > 0 {
            self.reports.push(shortened(output.failure_report()));
        }
        // A binary that ended badly without naming a test has failed itself, or it would pass unseen.
        let unexplained = output.unfinished() || (!ended.success && output.failed == 0);
        if unexplained {
            let during = match output.interrupted.as_deref() {
                Some(name) if !name.is_empty() => format!(" during {name}"),
                _ => String::new(),
            };
            self.failed += 1;
            self.failures.push(format!("{label}: {}{during}", ended.how));
        }
        let mark = if unexplained || output.failed > 0 {
            progress::paint("31;1", " FAIL")
        } else {
            progress::paint("32;1", "   ok")
        };
        format!(
            "{mark} {label}: {} passed, {} failed",
            output.passed,
            output.failed + usize::from(unexplained)
        )
    }

    /// Counts something that kept tests from running.
    pub(super) fn broken(&mut self, what: &str) {
        self.failed += 1;
        self.failures.push(what.to_owned());
    }

    /// Lists the failures, prints the closing line, and returns the exit code it stands for.
    pub(super) fn close(&self, filter: Option<&str>) -> ExitCode {
        if !self.failures.is_empty() {
            for report in &self.reports {
                eprint!("\n{report}");
            }
            eprintln!("\n{}", progress::paint("31;1", "failed:"));
            for failure in &self.failures {
                eprintln!("  {failure}");
            }
        }
        if self.passed + self.failed == 0 {
            match filter {
                Some(filter) => eprintln!("no test has `{filter}` in its name"),
                None => eprintln!("no test ran"),
            }
        }
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn is_success(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }
}

/// The first lines of a report, and how many were left out.
fn shortened(report: &str) -> String {
    let mut lines = report.lines().filter(|line| !line.is_empty());
    let mut kept: String = lines.by_ref().take(REPORT_LINES).flat_map(|line| [line, "\n"]).collect();
    let left = lines.count();
    if left > 0 {
        kept.push_str(&format!("({left} lines more above)\n"));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(success: bool) -> Ended {
        Ended { success, how: "ended with signal 6".into(), ..Ended::default() }
    }

    fn result(passed: usize, failed: usize) -> Output {
        let names: String = (0..failed).map(|number| format!("    t{number}\n")).collect();
        Output::parse(&format!(
            "failures:\n\nfailures:\n{names}\ntest result: x. {passed} passed; {failed} failed; 0 ignored\n"
        ))
    }

    #[test]
    fn success_takes_a_run_without_failure() {
        let mut summary = Summary::default();
        assert!(!summary.is_success(), "nothing ran");
        summary.add("a", &result(0, 0), &ended(true));
        assert!(!summary.is_success(), "still nothing ran");
        summary.add("a", &result(3, 0), &ended(true));
        assert!(summary.is_success());
        summary.add("b", &result(2, 2), &ended(false));
        assert!(!summary.is_success());
        assert_eq!((summary.passed, summary.failed), (5, 2));
        assert_eq!(summary.failures, ["b: t0", "b: t1"]);
    }

    #[test]
    fn what_failed_tests_said_is_told_again_but_not_without_end() {
        assert_eq!(shortened("\n---- a ----\nit broke\n\n"), "---- a ----\nit broke\n");
        let long = "x\n".repeat(REPORT_LINES + 3);
        assert!(shortened(&long).ends_with("x\n(3 lines more above)\n"));
        assert_eq!(shortened(&long).lines().count(), REPORT_LINES + 1);
    }

    #[test]
    fn a_bad_end_counts_once_when_no_test_explains_it() {
        let mut summary = Summary::default();
        summary.add("a", &result(3, 0), &ended(false));
        assert_eq!((summary.passed, summary.failed), (3, 1));
        let mut summary = Summary::default();
        summary.add("a", &Output::parse("running 2 tests\ntest x ... ok\ntest y ... "), &ended(false));
        assert_eq!((summary.passed, summary.failed), (1, 1));
        assert_eq!(summary.failures, ["a: ended with signal 6 during y"]);
        let mut summary = Summary::default();
        summary.add("a", &Output::parse(""), &ended(true));
        assert_eq!(summary.failed, 1, "a binary that says nothing has tested nothing");
    }

    #[test]
    fn what_keeps_tests_from_running_is_a_failure() {
        let mut summary = Summary::default();
        summary.add("a", &result(3, 0), &ended(true));
        summary.broken("build");
        assert!(!summary.is_success());
        assert_eq!(summary.failures, ["build"]);
    }
}
