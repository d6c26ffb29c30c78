//! What a test binary prints, understood.
//!
//! The result line is trusted for the counts; lines of single tests can be torn by what tests or the processes they
//! start print. Only when the binary died before its result line are the single lines counted.

/// The outcome of one run of one test binary (or of several printed one after another, as for documentation).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) passed: usize,
    pub(super) failed: usize,
    /// Names of the failed tests.
    pub(super) failures: Vec<String>,
    /// The test that was running when the output ended without a result.
    pub(super) interrupted: Option<String>,
    has_result: bool,
    report: String,
}

/// How many lines of each failed test are in a brief report: its name, where it failed, and why.
const BRIEF_LINES: usize = 6;
/// Of how many failed tests.
const BRIEF_TESTS: usize = 5;
/// How many characters of each of them.
const BRIEF_COLUMNS: usize = 300;

impl Output {
    pub(super) fn parse(text: &str) -> Self {
        let mut output = Self::default();
        let mut since_result = Single::default();
        let mut section = Section::Tests;
        for line in text.lines() {
            if let Some((passed, failed)) = result_line(line) {
                output.passed += passed;
                output.failed += failed;
                output.has_result = true;
                since_result = Single::default();
                section = Section::Tests;
                continue;
            }
            if line == "failures:" {
                section = section.next();
            }
            match section {
                Section::Tests => since_result.line(line),
                Section::Reports => {
                    output.report.push_str(line);
                    output.report.push('\n');
                }
                Section::Names => output.failures.extend(line.strip_prefix("    ").map(str::to_owned)),
            }
        }
        if since_result.started > 0 {
            output.has_result = false;
            output.passed += since_result.passed;
            output.failed += since_result.failures.len();
            output.failures.extend(since_result.failures);
            output.interrupted = Some(since_result.running.unwrap_or_default());
        }
        output
    }

    /// Whether the binary ended before it had told its result.
    pub(super) fn unfinished(&self) -> bool {
        !self.has_result
    }

    /// Whether a result was told, of no test at all.
    pub(super) fn is_empty(&self) -> bool {
        self.has_result && self.passed + self.failed == 0
    }

    /// The first lines of what each failed test printed, for a place between other things.
    pub(super) fn brief_report(&self) -> String {
        let mut brief = String::new();
        let (mut tests, mut left) = (0, 0);
        for line in self.report.lines().filter(|line| !line.is_empty()) {
            if self.begins_a_report(line) {
                tests += 1;
                left = if tests > BRIEF_TESTS { 0 } else { BRIEF_LINES };
            }
            if left > 0 {
                left -= 1;
                brief.extend(line.chars().take(BRIEF_COLUMNS));
                brief.push('\n');
            }
        }
        brief
    }

    /// Whether this line is the head of what a failed test printed; tests print such heads themselves.
    fn begins_a_report(&self, line: &str) -> bool {
        let head = line.strip_prefix("---- ").and_then(|line| line.strip_suffix(" ----"));
        head.is_some_and(|head| {
            let name = head.strip_suffix(" stdout").unwrap_or(head);
            self.failures.iter().any(|failure| failure == name)
        })
    }

    /// What the failed tests printed.
    pub(super) fn failure_report(&self) -> &str {
        &self.report
    }
}

/// libtest prints `failures:` twice: before what the failed tests printed, and before their names.
#[derive(Clone, Copy)]
enum Section {
    Tests,
    Reports,
    Names,
}

impl Section {
    fn next(self) -> Self {
        match self {
            Self::Tests => Self::Reports,
            Self::Reports | Self::Names => Self::Names,
        }
    }
}

/// Counts from the lines of single tests.
#[derive(Default)]
struct Single {
    started: usize,
    passed: usize,
    failures: Vec<String>,
    running: Option<String>,
}

impl Single {
    fn line(&mut self, line: &str) {
        if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            self.started += 1;
        }
        let (name, rest) = match test_line(line) {
            Some((name, rest)) => (Some(name.to_owned()), rest),
            None => (self.running.take(), line),
        };
        match rest.trim() {
            "ok" => self.passed += 1,
            "FAILED" => self.failures.extend(name),
            "ignored" => {}
            _ => self.running = name,
        }
    }
}

/// Splits `test NAME ... REST`.
pub(super) fn test_line(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ...")?;
    // Some harnesses align what follows the names.
    Some((name.trim_end(), rest))
}

/// Passed and failed of `test result: ok. 3 passed; 0 failed; …`.
fn result_line(line: &str) -> Option<(usize, usize)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |word: &str| counts.split("; ").find_map(|part| part.strip_suffix(word)?.trim().parse().ok());
    Some((count(" passed")?, count(" failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_green_run() {
        let text = "\nrunning 3 tests\ntest a::b ... ok\ntest a::c - should panic ... ok\ntest d ... ignored\n\n\
                    test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s\n\n";
        let output = Output::parse(text);
        assert_eq!((output.passed, output.failed), (2, 0));
        assert!(!output.unfinished() && output.failures.is_empty() && output.failure_report().is_empty());
    }

    #[test]
    fn titles_with_spaces_and_aligned_outcomes() {
        let text = "running 2 tests\ntest Services should: x [LinuxOnly] {routed, stack}   ... ok\n\
                    test Services should y {a, b}                         ... FAILED\n";
        let output = Output::parse(text);
        assert_eq!((output.passed, output.failed), (1, 1));
        assert_eq!(output.failures, ["Services should y {a, b}"]);
    }

    #[test]
    fn failures_come_with_name_and_report() {
        let text = "running 2 tests\ntest a ... FAILED\ntest b ... ok\n\nfailures:\n\n---- a stdout ----\n\
                    thread 'a' panicked:\n    indented\n\n\nfailures:\n    a\n\n\
                    test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";
        let output = Output::parse(text);
        assert_eq!((output.passed, output.failed), (1, 1));
        assert_eq!(output.failures, ["a"]);
        assert!(output.failure_report().contains("---- a stdout ----"));
        assert!(output.failure_report().contains("    indented"));
    }

    #[test]
    fn a_brief_report_has_the_beginning_of_each_test() {
        let long = format!("{}\n", "é".repeat(BRIEF_COLUMNS + 1));
        let report = |name: &str| {
            format!(
                "---- {name} ----\nexpected a refusal\n\nCaused by:\n---- log of n1 ----\n1\n2\nnever shown\n"
            )
        };
        let text = format!(
            "failures:\n\n---- a stdout ----\n{long}{}\n\nfailures:\n    a\n    b c\n\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored\n",
            report("b c")
        );
        let expected = format!(
            "---- a stdout ----\n{}\n---- b c ----\nexpected a refusal\nCaused by:\n---- log of n1 ----\n1\n2\n",
            "é".repeat(BRIEF_COLUMNS)
        );
        assert_eq!(Output::parse(&text).brief_report(), expected);
        let many = |count: usize| -> Output {
            let reports: String = (0..count).map(|number| report(&number.to_string())).collect();
            let names: String = (0..count).map(|number| format!("    {number}\n")).collect();
            Output::parse(&format!(
                "failures:\n{reports}failures:\n{names}test result: FAILED. 0 passed; 9 failed"
            ))
        };
        assert_eq!(many(BRIEF_TESTS + 3).brief_report(), many(BRIEF_TESTS).brief_report());
        assert_eq!(many(BRIEF_TESTS).brief_report().lines().count(), BRIEF_TESTS * BRIEF_LINES);
    }

    #[test]
    fn several_results_add_up() {
        let one = "running 1 test\ntest x ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let output = Output::parse(&one.repeat(3));
        assert_eq!((output.passed, output.failed, output.unfinished()), (3, 0, false));
    }

    #[test]
    fn a_binary_that_died_is_unfinished() {
        let text = "running 3 tests\ntest a ... ok\ntest b ... FAILED\ntest c ... something c prints\n";
        let output = Output::parse(text);
        assert!(output.unfinished());
        assert_eq!((output.passed, output.failed), (1, 1));
        assert_eq!(output.failures, ["b"]);
        assert_eq!(output.interrupted.as_deref(), Some("c"));
        assert!(Output::parse("").unfinished());
    }

    #[test]
    fn results_after_a_tests_own_output_count_while_unfinished() {
        let text = "running 2 tests\ntest a ... noise\nmore noise\nok\ntest b ... ";
        let output = Output::parse(text);
        assert_eq!((output.passed, output.failed), (1, 0));
        assert_eq!(output.interrupted.as_deref(), Some("b"));
    }

    #[test]
    fn torn_lines_do_not_change_the_counts() {
        let text = "running 2 tests\ntest a ... noise of a process ok\ntest b ... ok\n\n\
                    test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n";
        assert_eq!(Output::parse(text).passed, 2);
    }
}
