//! A report for people.

use std::fmt::Write as _;

use super::{Report, Row, Spread};
use crate::bench::machine::Machine;

impl Report {
    /// As a table for people.
    pub fn table(&self) -> String {
        let Machine { processor, cores, kernel, commit } = &self.machine;
        let mut text = format!(
            "{} at {commit}, Linux {kernel}, {processor}, {cores} cores, {} rounds\n\n",
            self.benchmark, self.rounds
        );
        let counted = self.rows.iter().any(|row| row.path.is_some());
        let mut head = vec!["CASE", "MEDIAN (LOW..HIGH)", "UNIT", "RATIO (LOW..HIGH)", "TO", "GOAL"];
        if counted {
            head.extend(["INSN", "HELPERS"]);
        }
        let mut lines = vec![head.into_iter().map(str::to_owned).collect()];
        lines.extend(self.rows.iter().map(|row| cells(row, counted)));
        let _ = write!(text, "{}", aligned(&lines));
        for row in self.rows.iter().filter(|row| row.note.is_some()) {
            let _ = writeln!(text, "\n{}: {}", row.case, row.note.as_deref().unwrap_or_default());
        }
        text
    }
}

fn cells(row: &Row, counted: bool) -> Vec<String> {
    let spread = |Spread { median, low, high }: Spread, show: &dyn Fn(f64) -> String| {
        if low == high { show(median) } else { format!("{} ({}..{})", show(median), show(low), show(high)) }
    };
    let ratio = row.reference.as_ref().map_or_else(
        || ("-".to_owned(), "-".to_owned()),
        |reference| (spread(reference.ratio, &|ratio| format!("{ratio:.2}")), reference.to.clone()),
    );
    let goals = if row.goals.is_empty() { "-".to_owned() } else { row.goals.join(",") };
    let mut cells =
        vec![row.case.clone(), spread(row.value, &number), row.unit.clone(), ratio.0, ratio.1, goals];
    if counted {
        let (instructions, helpers) = match &row.path {
            Some(path) => (path.instructions.to_string(), path.helpers.join(",")),
            None => ("-".to_owned(), String::new()),
        };
        cells.extend([instructions, if helpers.is_empty() { "-".to_owned() } else { helpers }]);
    }
    cells
}

/// A figure with three or more digits that mean something.
pub fn number(figure: f64) -> String {
    match figure.abs() {
        small if small < 10.0 => format!("{figure:.2}"),
        middle if middle < 100.0 => format!("{figure:.1}"),
        _ => {
            let digits = format!("{figure:.0}");
            let (sign, digits) = digits.split_at(usize::from(figure < 0.0));
            let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
            format!("{sign}{}", groups.join(","))
        }
    }
}

/// Lines with their cells below one another: the first to the left, the others to the right.
pub fn aligned(lines: &[Vec<String>]) -> String {
    let length = |cell: &String| cell.chars().count();
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column| lines.iter().filter_map(|line: &Vec<String>| line.get(column)).map(length).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, &width))| match column {
            0 => format!("{cell:width$}"),
            _ => format!("{cell:>width$}"),
        });
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_mean_something() {
        for (figure, text) in [
            (0.256, "0.26"),
            (9.0, "9.00"),
            (12.34, "12.3"),
            (123.4, "123"),
            (12_345.6, "12,346"),
            (-1_234_567.0, "-1,234,567"),
        ] {
            assert_eq!(number(figure), text);
        }
    }

    #[test]
    fn a_table_tells_everything_about_a_row() {
        let rows = vec![
            Row::new("direct", "/s", &[20_000.0]).higher_is_better(),
            Row::new("iptables", "/s", &[10_000.0, 12_000.0, 11_000.0])
                .higher_is_better()
                .ratios("direct", &[0.5, 0.6, 0.55])
                .goal("S3")
                .note("one Service"),
        ];
        let table = Report::new("latency", 3, rows).table();
        let line = table.lines().find(|line| line.starts_with("iptables ")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(
            words,
            ["iptables", "11,000", "(10,000..12,000)", "/s", "0.55", "(0.50..0.60)", "direct", "S3"]
        );
        assert!(table.ends_with("\niptables: one Service\n") && !table.contains("INSN"), "{table}");
    }
}
