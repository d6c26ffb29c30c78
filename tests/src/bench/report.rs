//! What a benchmark found: as JSON, as a table, and beside another one.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use crate::datapath::path::Length;

/// One run of a benchmark.
#[derive(Clone, Debug, Serialize, Deserialize)]
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

/// One case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub case: String,
    /// Nanoseconds a packet, without what measuring costs.
    pub nanoseconds: Spread,
    /// What it is compared with in every round.
    pub reference: String,
    /// Its time to the reference's, round by round.
    pub ratio: Spread,
    /// Instructions and helpers of the path, where it can be counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<PathLength>,
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

impl Report {
    /// As a table for people.
    pub fn table(&self) -> String {
        let Machine { processor, cores, kernel, commit } = &self.machine;
        let width = self.rows.iter().map(|row| row.case.len()).max().unwrap_or(0).max(4);
        let mut text = format!(
            "{} at {commit}, Linux {kernel}, {processor}, {cores} cores, {} rounds\n\n",
            self.benchmark, self.rounds
        );
        let _ = writeln!(
            text,
            "{:width$}  {:>7}  {:>22}  {:>12}  {:>4}  HELPERS",
            "CASE", "NS", "RATIO (LOW..HIGH)", "TO", "INSN"
        );
        for row in &self.rows {
            let Spread { median, low, high } = row.ratio;
            let ratio = format!("{median:.2} ({low:.2}..{high:.2})");
            let (instructions, helpers) = match &row.path {
                Some(path) => (path.instructions.to_string(), path.helpers.join(",")),
                None => ("-".to_owned(), String::new()),
            };
            let _ = writeln!(
                text,
                "{:width$}  {:>7.1}  {ratio:>22}  {:>12}  {instructions:>4}  {}",
                row.case,
                row.nanoseconds.median,
                row.reference,
                if helpers.is_empty() { "-" } else { &helpers }
            );
        }
        text
    }

    /// How this run's ratios and counts differ from an earlier one's, case by case. A ratio outside of what the earlier
    /// rounds showed is marked.
    pub fn compared_to(&self, before: &Self) -> String {
        let width = self.rows.iter().map(|row| row.case.len()).max().unwrap_or(0).max(4);
        let mut text = format!(
            "{}: {} -> {}\n\n{:width$}  {:>17}  {:>7}  INSTRUCTIONS\n",
            self.benchmark, before.machine.commit, self.machine.commit, "CASE", "RATIO", "CHANGE"
        );
        for row in &self.rows {
            let Some(old) = before.rows.iter().find(|old| old.case == row.case) else {
                let _ = writeln!(text, "{:width$}  new", row.case);
                continue;
            };
            let change = row.ratio.median / old.ratio.median;
            let mark = if row.ratio.median > old.ratio.high && row.ratio.low > old.ratio.median {
                "  slower"
            } else if row.ratio.median < old.ratio.low && row.ratio.high < old.ratio.median {
                "  faster"
            } else {
                ""
            };
            let counts = match (&old.path, &row.path) {
                (Some(old), Some(new)) if old != new => {
                    format!("{} -> {}", old.instructions, new.instructions)
                }
                (Some(_), Some(new)) => new.instructions.to_string(),
                _ => "-".to_owned(),
            };
            let _ = writeln!(
                text,
                "{:width$}  {:>7.2} -> {:>6.2}  {change:>6.2}x  {counts}{mark}",
                row.case, old.ratio.median, row.ratio.median
            );
        }
        for old in before.rows.iter().filter(|old| self.rows.iter().all(|row| row.case != old.case)) {
            let _ = writeln!(text, "{:width$}  gone", old.case);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(commit: &str, ratio: [f64; 3], instructions: u32) -> Report {
        let machine = Machine {
            processor: "a processor".to_owned(),
            cores: 2,
            kernel: "6.18".to_owned(),
            commit: commit.to_owned(),
        };
        let path = Some(PathLength { instructions, rows: 3, helpers: Vec::new() });
        let row = Row {
            case: "from_pod".to_owned(),
            nanoseconds: Spread::of(vec![10.0, 30.0, 20.0]),
            reference: "hash_lookups".to_owned(),
            ratio: Spread::of(ratio.to_vec()),
            path,
        };
        let taken = "2026-01-01T00:00:00Z".to_owned();
        Report { benchmark: "packet".to_owned(), taken, machine, rounds: 3, rows: vec![row] }
    }

    #[test]
    fn a_spread_is_the_middle_and_both_ends() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Spread { median: 2.0, low: 1.0, high: 3.0 });
    }

    #[test]
    fn a_case_is_slower_when_both_runs_agree_on_it() {
        let before = report("old", [0.5, 0.45, 0.55], 300);
        let slower = report("new", [0.7, 0.6, 0.8], 310).compared_to(&before);
        assert!(slower.contains("slower") && slower.contains("300 -> 310"), "{slower}");
        let alike = report("new", [0.52, 0.48, 0.8], 300).compared_to(&before);
        assert!(!alike.contains("slower") && !alike.contains("faster"), "{alike}");
        let faster = report("new", [0.3, 0.2, 0.4], 300).compared_to(&before);
        assert!(faster.contains("faster"), "{faster}");
    }

    #[test]
    fn reports_survive_json() {
        let report = report("one", [1.0, 1.0, 1.0], 7);
        let json = serde_json::to_string(&report).unwrap();
        let back: Report = serde_json::from_str(&json).unwrap();
        assert_eq!(back.rows[0].path, report.rows[0].path);
        assert!(back.table().contains("from_pod"));
    }
}
