//! The goals (`docs/benchmarks/goals.yaml`), and whether they are met.

mod bound;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

pub use self::bound::{Bound, Figure};
use super::report::Report;

/// A goal as written down.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Goal {
    /// `D1`.
    pub id: String,
    /// What is measured.
    pub title: String,
    /// The best that was known of others.
    #[serde(default)]
    pub anchor: Option<String>,
    /// What has to hold, all of it.
    pub bounds: Vec<Bound>,
    /// Why it is not met.
    #[serde(default)]
    pub account: Option<String>,
}

/// What became of a goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Every bound holds.
    Met,
    /// No measured bound is broken, but not all were measured.
    Partly,
    /// A bound does not hold.
    Missed,
    /// No row answers it.
    Unmeasured,
}

/// A bound, and what was measured.
#[derive(Clone, Debug)]
pub struct Finding<'a> {
    /// What has to hold.
    pub bound: &'a Bound,
    /// What was found: of several rows the worst. `None` when none answers it.
    pub found: Option<Found>,
}

/// The row that decides a bound.
#[derive(Clone, Debug)]
pub struct Found {
    /// Benchmark and case.
    pub case: String,
    /// Its figure, in the bound's unit.
    pub figure: f64,
    /// Whether the bound holds.
    pub holds: bool,
}

impl Goal {
    /// The row that a bound is about.
    pub fn row<'a>(&'a self, bound: &'a Bound) -> &'a str {
        bound.row.as_deref().unwrap_or(&self.id)
    }

    /// What some reports say about it, bound by bound.
    ///
    /// # Errors
    /// When a row that answers it has another unit, or no reference where a ratio is asked for.
    pub fn judge(&self, reports: &[Report]) -> Result<Vec<Finding<'_>>> {
        self.bounds.iter().map(|bound| self.judge_bound(bound, reports)).collect()
    }

    fn judge_bound<'a>(&'a self, bound: &'a Bound, reports: &[Report]) -> Result<Finding<'a>> {
        let name = self.row(bound);
        let mut worst: Option<Found> = None;
        for report in reports {
            for row in report.rows.iter().filter(|row| row.goals.iter().any(|goal| goal == name)) {
                let case = format!("{}: {}", report.benchmark, row.case);
                let figure = bound.figure(row).with_context(|| format!("{case} answers {name}"))?;
                let worse =
                    worst.as_ref().is_none_or(|worst| bound.distance(figure) > bound.distance(worst.figure));
                if worse {
                    worst = Some(Found { case, figure, holds: bound.holds(figure) });
                }
            }
        }
        Ok(Finding { bound, found: worst })
    }
}

/// What some findings come to.
pub fn state(findings: &[Finding<'_>]) -> State {
    let found: Vec<_> = findings.iter().filter_map(|finding| finding.found.as_ref()).collect();
    match (found.len(), found.iter().all(|found| found.holds)) {
        (0, _) => State::Unmeasured,
        (_, false) => State::Missed,
        (measured, true) if measured == findings.len() => State::Met,
        _ => State::Partly,
    }
}

/// Where the goals stand.
pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks/goals.yaml")
}

/// Reads the goals.
///
/// # Errors
/// When the file is missing, or does not say what it should; the place is in the error.
pub fn read() -> Result<Vec<Goal>> {
    let path = path();
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> Result<Vec<Goal>> {
    let goals: Vec<Goal> = serde_saphyr::from_str(text)?;
    let mut rows = Vec::new();
    for goal in &goals {
        ensure!(!goal.bounds.is_empty(), "{} has no bounds", goal.id);
        rows.extend(goal.bounds.iter().map(|bound| goal.row(bound)));
    }
    rows.sort_unstable();
    // A row may have a value and a ratio to answer, no more.
    ensure!(rows.windows(3).all(|same| same[0] != same[2]), "a row answers more than two bounds");
    Ok(goals)
}

/// Makes sure that every row that claims to answer a goal names one there is.
///
/// # Errors
/// Naming the row.
pub fn check(goals: &[Goal], report: &Report) -> Result<()> {
    for row in &report.rows {
        for named in &row.goals {
            let known = goals.iter().any(|goal| goal.bounds.iter().any(|bound| goal.row(bound) == named));
            ensure!(known, "{}: {}: no goal has a row {named}", report.benchmark, row.case);
        }
    }
    for goal in goals {
        goal.judge(std::slice::from_ref(report))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Row;

    const TEXT: &str = r#"
- id: D1
  title: one
  bounds:
    - { value: "<= 25 ns" }
    - { ratio: "<= 0.25", of: something }
- id: S1
  title: two
  bounds:
    - { row: S1/rate, ratio: ">= 1.8", of: something }
    - { row: S1/lost, value: "<= 0 requests" }
"#;

    fn report(rows: Vec<Row>) -> Report {
        Report::new("packet", 1, rows)
    }

    #[test]
    fn the_goals_can_be_read() {
        let goals = read().unwrap();
        for prefix in ["D", "S", "C"] {
            assert!(goals.iter().filter(|goal| goal.id.starts_with(prefix)).count() > 5, "{prefix}");
        }
    }

    #[test]
    fn the_worst_row_decides() {
        let goals = parse(TEXT).unwrap();
        let row = |case: &str, ns: f64, ratio: f64| {
            Row::new(case, "ns", &[ns]).ratios("something", &[ratio]).goal("D1")
        };
        let judged = |rows| {
            let reports = [report(rows)];
            let findings = goals[0].judge(&reports).unwrap();
            (state(&findings), findings[0].found.clone().map(|found| found.case))
        };
        assert_eq!(judged(vec![]), (State::Unmeasured, None));
        let (good, slow) = (row("good", 20.0, 0.2), row("slow", 20.5, 0.3));
        assert_eq!(judged(vec![good.clone()]), (State::Met, Some("packet: good".to_owned())));
        assert_eq!(judged(vec![good, slow]), (State::Missed, Some("packet: slow".to_owned())));
    }

    #[test]
    fn what_is_measured_in_part_is_not_met() {
        let goals = parse(TEXT).unwrap();
        let rate = Row::new("rate", "/s", &[9.0]).ratios("something", &[2.0]).goal("S1/rate");
        let lost = Row::new("lost", "requests", &[0.0]).goal("S1/lost");
        assert_eq!(state(&goals[1].judge(&[report(vec![rate.clone()])]).unwrap()), State::Partly);
        assert_eq!(state(&goals[1].judge(&[report(vec![rate, lost])]).unwrap()), State::Met);
    }

    #[test]
    fn a_row_that_answers_nothing_is_found() {
        let goals = parse(TEXT).unwrap();
        for (row, word) in [
            (Row::new("a", "ns", &[1.0]).goal("D2"), "no goal has a row D2"),
            (Row::new("a", "ns", &[1.0]).goal("D1"), "answers D1"),
            (Row::new("a", "/s", &[1.0]).ratios("b", &[1.0]).goal("D1"), "answers D1"),
        ] {
            let error = check(&goals, &report(vec![row])).unwrap_err();
            assert!(error.to_string().contains(word), "{error:#}");
        }
    }

    #[test]
    fn nonsense_is_no_goal() {
        assert!(parse("- id: D1\n  title: a\n  bounds: []\n").is_err());
        assert!(parse("- id: D1\n  title: a\n  bounds: [{ value: 25 ns }]\n").is_err());
        assert!(parse("- id: D1\n  title: a\n  bounds: [{ row: a }]\n").is_err());
    }
}
