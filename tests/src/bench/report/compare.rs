//! One report beside an earlier one.

use super::table::{aligned, number};
use super::{Report, Row, Spread};

/// What became of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Neither is outside of what the other's rounds showed.
    Alike,
    /// Both runs agree that it got better.
    Better,
    /// Both runs agree that it got worse.
    Worse,
}

impl Row {
    /// What is compared between runs: the ratio where there is one, the figure otherwise.
    fn compared(&self) -> Spread {
        self.reference.as_ref().map_or(self.value, |reference| reference.ratio)
    }

    /// What became of this case since an earlier run. More rounds give a surer answer: a change is one when each median is
    /// outside of what the other run showed.
    pub fn change(&self, before: &Self) -> Change {
        let (old, new) = (before.compared(), self.compared());
        let up = new.median > old.high && new.low > old.median;
        let down = new.median < old.low && new.high < old.median;
        match (up, down, self.higher_is_better) {
            (true, _, true) | (_, true, false) => Change::Better,
            (true, _, false) | (_, true, true) => Change::Worse,
            (false, false, _) => Change::Alike,
        }
    }
}

impl Report {
    /// The cases that both runs agree on to be worse than in an earlier one, or whose path got longer.
    pub fn regressions<'a>(&'a self, before: &Self) -> Vec<&'a Row> {
        let worse = |row: &&Row| {
            before.row(&row.case).is_some_and(|old| row.change(old) == Change::Worse || longer(old, row))
        };
        self.rows.iter().filter(worse).collect()
    }

    /// How this run's ratios and counts differ from an earlier one's, case by case.
    pub fn compared_to(&self, before: &Self) -> String {
        let head = ["CASE", "BEFORE", "AFTER", "CHANGE", "INSTRUCTIONS", ""].map(str::to_owned).to_vec();
        let mut lines = vec![head];
        for row in &self.rows {
            let Some(old) = before.row(&row.case) else {
                lines.push(vec![row.case.clone(), "new".to_owned(), number(row.compared().median)]);
                continue;
            };
            let (from, to) = (old.compared().median, row.compared().median);
            let mark = match row.change(old) {
                _ if longer(old, row) => "WORSE",
                Change::Worse => "WORSE",
                Change::Better => "better",
                Change::Alike => "",
            };
            let counts = match (&old.path, &row.path) {
                (Some(old), Some(new)) if old != new => {
                    format!("{} -> {}", old.instructions, new.instructions)
                }
                (Some(_), Some(new)) => new.instructions.to_string(),
                _ => "-".to_owned(),
            };
            let change = if from == 0.0 { "-".to_owned() } else { format!("{:.2}x", to / from) };
            lines.push(vec![row.case.clone(), number(from), number(to), change, counts, mark.to_owned()]);
        }
        for old in before.rows.iter().filter(|old| self.row(&old.case).is_none()) {
            lines.push(vec![old.case.clone(), "gone".to_owned()]);
        }
        let worse = self.regressions(before).len();
        format!(
            "{}: {} -> {}\n\n{}\n{worse} of {} cases got worse\n",
            self.benchmark,
            before.machine.commit,
            self.machine.commit,
            aligned(&lines),
            self.rows.len()
        )
    }
}

/// Whether a path takes more instructions, rows or helpers than it did.
fn longer(before: &Row, after: &Row) -> bool {
    match (&before.path, &after.path) {
        (Some(old), Some(new)) => {
            new.instructions > old.instructions + old.instructions.div_ceil(20)
                || new.rows > old.rows
                || new.helpers.len() > old.helpers.len()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::PathLength;

    fn report(ratio: [f64; 3], instructions: u32, rate: [f64; 3]) -> Report {
        let path = Some(PathLength { instructions, rows: 3, helpers: Vec::new() });
        let rows = vec![
            Row::new("from_pod", "ns", &[10.0, 30.0, 20.0]).ratios("hash_lookups", &ratio).path(path),
            Row::new("rate", "/s", &rate).higher_is_better(),
        ];
        Report::new("packet", 3, rows)
    }

    #[test]
    fn a_case_is_worse_when_both_runs_agree_on_it() {
        let before = report([0.5, 0.45, 0.55], 300, [10.0, 11.0, 12.0]);
        let change = |after: &Report, case: &str| after.row(case).unwrap().change(before.row(case).unwrap());

        let slower = report([0.7, 0.6, 0.8], 310, [7.0, 8.0, 9.0]);
        assert_eq!((change(&slower, "from_pod"), change(&slower, "rate")), (Change::Worse, Change::Worse));
        let text = slower.compared_to(&before);
        assert!(text.contains("300 -> 310") && text.ends_with("2 of 2 cases got worse\n"), "{text}");

        let alike = report([0.52, 0.48, 0.8], 300, [9.0, 10.0, 13.0]);
        assert_eq!((change(&alike, "from_pod"), change(&alike, "rate")), (Change::Alike, Change::Alike));
        assert!(alike.regressions(&before).is_empty());

        let faster = report([0.3, 0.2, 0.4], 300, [14.0, 15.0, 16.0]);
        assert_eq!((change(&faster, "from_pod"), change(&faster, "rate")), (Change::Better, Change::Better));
    }

    #[test]
    fn a_longer_path_is_a_regression_whatever_the_clock_says() {
        let before = report([0.5, 0.45, 0.55], 300, [10.0, 11.0, 12.0]);
        let longer = report([0.5, 0.45, 0.55], 330, [10.0, 11.0, 12.0]);
        assert_eq!(longer.regressions(&before)[0].case, "from_pod");
    }
}
