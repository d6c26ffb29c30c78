//! Text in aligned columns.

use std::fmt::Write;

/// Bold, and back to normal (ECMA-48 SGR).
const BOLD: (&str, &str) = ("\u{1b}[1m", "\u{1b}[0m");

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    title: &'static str,
    right: bool,
}

impl Column {
    /// A column of text, aligned to the left.
    pub const fn text(title: &'static str) -> Self {
        Self { title, right: false }
    }

    /// A column of numbers, aligned to the right.
    pub const fn number(title: &'static str) -> Self {
        Self { title, right: true }
    }
}

/// Rows under columns.
#[derive(Clone, Debug)]
pub struct TableText {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl TableText {
    /// A table without rows.
    pub fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; cells beyond the columns are left out, missing ones are empty.
    pub fn row<I: IntoIterator<Item = String>>(&mut self, cells: I) {
        let mut cells: Vec<String> = cells.into_iter().collect();
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }

    /// As text, titles first; `color` makes them bold.
    pub fn render(&self, color: bool) -> String {
        let width = |at: usize| {
            let cells = self.rows.iter().map(|row| row[at].chars().count());
            cells.max().unwrap_or(0).max(self.columns[at].title.len())
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        let titles = self.line(self.columns.iter().map(|column| column.title), &widths);
        let (on, off) = if color { BOLD } else { ("", "") };
        // Writing into a string does not fail.
        let _ = writeln!(text, "{on}{titles}{off}");
        for row in &self.rows {
            let _ = writeln!(text, "{}", self.line(row.iter().map(String::as_str), &widths));
        }
        text
    }

    fn line<'a>(&self, cells: impl Iterator<Item = &'a str>, widths: &[usize]) -> String {
        let mut line = String::new();
        for ((cell, width), column) in cells.zip(widths).zip(&self.columns) {
            let gap = width - cell.chars().count();
            let (before, after) = if column.right { (gap, 0) } else { (0, gap) };
            let _ = write!(line, "{:before$}{cell}{:after$}   ", "", "");
        }
        line.truncate(line.trim_end().len());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_aligned_left_and_numbers_right_without_trailing_space() {
        let mut table = TableText::new(&[Column::text("NAME"), Column::number("COUNT"), Column::text("X")]);
        table.row(["a", "12345678", "y"].map(str::to_owned));
        table.row(["überlang", "1"].map(str::to_owned));
        let expected = "NAME          COUNT   X\na          12345678   y\nüberlang          1\n";
        assert_eq!(table.render(false), expected);
        assert!(table.render(true).starts_with("\u{1b}[1mNAME"));
    }
}
