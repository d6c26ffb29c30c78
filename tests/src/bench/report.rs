//! What a benchmark found: one type for all of them.
//!
//! A row is one case. What counts is its ratio to another case that was measured in the same round: a machine's mood changes
//! absolute figures, and hardly a ratio. Clock-free figures (instructions, bytes) stand for themselves.

mod compare;
pub mod table;

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use crate::datapath::path::Length;

/// One run of a benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the benchmark.
    pub benchmark: String,
    /// When, RFC 3339.
    pub taken: String,
    /// On what.
    pub machine: Machine,
    /// Rounds; every case was measured once in each, one after another.
    pub rounds: usize,
    /// What was found.
    pub rows: Vec<Row>,
}

impl Report {
    /// Of a run that has just ended, on this machine.
    pub fn new(benchmark: &str, rounds: usize, rows: Vec<Row>) -> Self {
        let (taken, machine) = (jiff::Timestamp::now().to_string(), Machine::here());
        Self { benchmark: benchmark.to_owned(), taken, machine, rounds, rows }
    }

    /// The row of a case.
    pub fn row(&self, case: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.case == case)
    }
}

/// One case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its name, unlike any other's of the benchmark.
    pub case: String,
    /// Unit of the value: `ns`, `us`, `ms`, `/s`, `Mpps`, `Gbit/s`, `bytes`, `instructions`, …
    pub unit: String,
    /// The figure.
    pub value: Spread,
    /// Whether more is better.
    #[serde(default)]
    pub higher_is_better: bool,
    /// What it is compared with.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reference: Option<Reference>,
    /// The goals that it answers: identifiers in `docs/benchmarks/goals.yaml` (`D1`, or `S1/nftables` for one of several
    /// conditions).
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub goals: Vec<String>,
    /// Instructions and helpers of the path, where it can be counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<PathLength>,
    /// What a reader should know.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
}

/// What a row is compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// Name of a case, or of a reference program.
    pub to: String,
    /// The row's figure to that one's, round by round.
    pub ratio: Spread,
}

impl Row {
    /// A case whose figures, one a round, are better when they are lower.
    ///
    /// # Panics
    /// Without figures, as the other functions here that take some.
    pub fn new(case: impl Into<String>, unit: &str, figures: &[f64]) -> Self {
        Self {
            case: case.into(),
            unit: unit.to_owned(),
            value: Spread::of(figures.to_vec()),
            higher_is_better: false,
            reference: None,
            goals: Vec::new(),
            path: None,
            note: None,
        }
    }

    /// More is better: a rate.
    #[must_use]
    pub fn higher_is_better(mut self) -> Self {
        self.higher_is_better = true;
        self
    }

    /// Compared with `to`: ratios of this figure to that one's, one a round.
    #[must_use]
    pub fn ratios(mut self, to: &str, ratios: &[f64]) -> Self {
        self.reference = Some(Reference { to: to.to_owned(), ratio: Spread::of(ratios.to_vec()) });
        self
    }

    /// Answers a goal.
    #[must_use]
    pub fn goal(mut self, goal: &str) -> Self {
        self.goals.push(goal.to_owned());
        self
    }

    /// With the length of its path.
    #[must_use]
    pub fn path(mut self, path: Option<PathLength>) -> Self {
        self.path = path;
        self
    }

    /// With a remark for readers.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

/// Figures of each round to another case's of the same round.
///
/// # Panics
/// When the rounds are not as many.
pub fn ratios(figures: &[f64], reference: &[f64]) -> Vec<f64> {
    assert_eq!(figures.len(), reference.len(), "figures of different rounds");
    figures.iter().zip(reference).map(|(figure, reference)| figure / reference).collect()
}

/// See [`Length`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathLength {
    /// Instructions of the program.
    pub instructions: u32,
    /// Rows of arrays read.
    pub rows: u32,
    /// Helpers called.
    pub helpers: Vec<String>,
}

impl From<Length> for PathLength {
    fn from(length: Length) -> Self {
        let Length { instructions, rows, helpers } = length;
        Self { instructions, rows, helpers: helpers.into_iter().map(str::to_owned).collect() }
    }
}

/// A figure over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

impl Spread {
    /// The spread of some figures.
    ///
    /// # Panics
    /// Without any.
    pub fn of(mut figures: Vec<f64>) -> Self {
        assert!(!figures.is_empty(), "figures of no round");
        figures.sort_by(f64::total_cmp);
        Self { median: figures[figures.len() / 2], low: figures[0], high: figures[figures.len() - 1] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_middle_and_both_ends() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Spread { median: 2.0, low: 1.0, high: 3.0 });
    }

    #[test]
    fn ratios_go_by_round() {
        assert_eq!(ratios(&[1.0, 6.0], &[2.0, 3.0]), [0.5, 2.0]);
    }

    #[test]
    fn reports_survive_json() {
        let path = PathLength { instructions: 7, rows: 3, helpers: vec!["redirect".to_owned()] };
        let rows = vec![
            Row::new("plain", "bytes", &[1.0]),
            Row::new("rate", "/s", &[1.0, 2.0])
                .higher_is_better()
                .ratios("plain", &[0.5])
                .goal("S3")
                .path(Some(path))
                .note("a note"),
        ];
        let report = Report::new("packet", 2, rows);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        assert_eq!(report.row("rate").unwrap().goals, ["S3"]);
    }
}
