//! What was published before, in a short form: one line a report, the newest last.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::bench::machine::Machine;
use crate::bench::report::{PathLength, Reference, Report, Row, Spread};

/// Every report that was published, without notes and helpers.
pub type History = Vec<Report>;

#[derive(Serialize, Deserialize)]
struct Entry {
    benchmark: String,
    taken: String,
    machine: Machine,
    rounds: usize,
    rows: Vec<Short>,
}

/// A row: case, unit, value; what it is compared with and the ratio, median, low and high; instructions.
#[derive(Serialize, Deserialize)]
struct Short {
    #[serde(rename = "c")]
    case: String,
    #[serde(rename = "u")]
    unit: String,
    #[serde(rename = "v")]
    value: [f64; 3],
    #[serde(rename = "r", skip_serializing_if = "Option::is_none", default)]
    ratio: Option<(String, [f64; 3])>,
    #[serde(rename = "i", skip_serializing_if = "Option::is_none", default)]
    instructions: Option<u32>,
    #[serde(rename = "more", skip_serializing_if = "std::ops::Not::not", default)]
    higher_is_better: bool,
}

/// Four digits that mean something: the others are noise.
fn rounded(Spread { median, low, high }: Spread) -> [f64; 3] {
    [median, low, high].map(|figure| format!("{figure:.3e}").parse().unwrap_or(figure))
}

fn spread([median, low, high]: [f64; 3]) -> Spread {
    Spread { median, low, high }
}

impl From<&Row> for Short {
    fn from(row: &Row) -> Self {
        let ratio = row.reference.as_ref().map(|reference| (reference.to.clone(), rounded(reference.ratio)));
        Self {
            case: row.case.clone(),
            unit: row.unit.clone(),
            value: rounded(row.value),
            ratio,
            instructions: row.path.as_ref().map(|path| path.instructions),
            higher_is_better: row.higher_is_better,
        }
    }
}

impl From<Short> for Row {
    fn from(short: Short) -> Self {
        let path = |instructions| PathLength { instructions, rows: 0, helpers: Vec::new() };
        Self {
            case: short.case,
            unit: short.unit,
            value: spread(short.value),
            higher_is_better: short.higher_is_better,
            reference: short.ratio.map(|(to, ratio)| Reference { to, ratio: spread(ratio) }),
            goals: Vec::new(),
            path: short.instructions.map(path),
            note: None,
        }
    }
}

/// Appends a report, unless it is the last one of its benchmark already.
///
/// # Errors
/// When the file cannot be read or written.
pub(super) fn append(directory: &Path, report: &Report) -> Result<()> {
    let known = read(directory)?;
    if known.iter().any(|old| old.benchmark == report.benchmark && old.taken == report.taken) {
        return Ok(());
    }
    let entry = Entry {
        benchmark: report.benchmark.clone(),
        taken: report.taken.clone(),
        machine: report.machine.clone(),
        rounds: report.rounds,
        rows: report.rows.iter().map(Short::from).collect(),
    };
    let path = directory.join("history.jsonl");
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    writeln!(file, "{}", serde_json::to_string(&entry)?).with_context(|| format!("write {}", path.display()))
}

/// Reads the history; without a file there is none.
///
/// # Errors
/// When a line is something else; its number is in the error.
pub fn read(directory: &Path) -> Result<History> {
    let path = directory.join("history.jsonl");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let report = |(index, line): (usize, &str)| {
        let entry: Entry =
            serde_json::from_str(line).with_context(|| format!("{}:{}", path.display(), index + 1))?;
        let Entry { benchmark, taken, machine, rounds, rows } = entry;
        Ok(Report { benchmark, taken, machine, rounds, rows: rows.into_iter().map(Row::from).collect() })
    };
    text.lines().enumerate().map(report).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_remembers_what_is_compared() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read(directory.path()).unwrap().is_empty());
        let path = PathLength { instructions: 300, rows: 0, helpers: Vec::new() };
        let rows = vec![
            Row::new("a", "ns", &[10.123_456, 12.0, 11.0]).ratios("b", &[0.123_456]).path(Some(path)),
            Row::new("rate", "/s", &[2.0]).higher_is_better().note("not kept"),
        ];
        let report = Report::new("packet", 3, rows);
        append(directory.path(), &report).unwrap();
        append(directory.path(), &report).unwrap();
        let known = read(directory.path()).unwrap();
        assert_eq!(known.len(), 1, "the same report stands there once");
        let (kept, old) = (&known[0], &report);
        assert_eq!((&kept.taken, &kept.machine), (&old.taken, &old.machine));
        assert_eq!(kept.rows[0].reference.as_ref().unwrap().ratio.median, 0.1235);
        assert_eq!((kept.rows[0].value.high, kept.rows[0].path.as_ref().unwrap().instructions), (12.0, 300));
        assert!(kept.rows[1].higher_is_better && report.regressions(kept).is_empty());
    }
}
