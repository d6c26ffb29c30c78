//! Dropped and refused packets by reason.

use lb_common::reason::Reason;
use serde::Serialize;

use super::{Column, TableText};

/// A reason with its count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DropRow {
    /// Name of the reason.
    pub reason: &'static str,
    /// Packets.
    pub packets: u64,
    /// What it means.
    pub meaning: &'static str,
}

/// Every reason, or only those that occurred; the most frequent first.
pub fn drop_rows(counts: &[(Reason, u64)], all: bool) -> Vec<DropRow> {
    let mut rows: Vec<DropRow> = counts
        .iter()
        .filter(|(_, packets)| all || *packets > 0)
        .map(|(reason, packets)| DropRow {
            reason: reason.name(),
            packets: *packets,
            meaning: reason.meaning(),
        })
        .collect();
    rows.sort_by_key(|row| (std::cmp::Reverse(row.packets), row.reason));
    rows
}

impl DropRow {
    /// Rows as a table.
    pub fn table(rows: &[Self]) -> TableText {
        let mut table =
            TableText::new(&[Column::text("REASON"), Column::number("PACKETS"), Column::text("MEANING")]);
        for row in rows {
            table.row([row.reason.to_owned(), row.packets.to_string(), row.meaning.to_owned()]);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_occurred_most_comes_first_and_what_never_did_is_left_out() {
        let counts = [(Reason::NoEndpoint, 1), (Reason::Fragment, 0), (Reason::UnknownPort, 5)];
        let names = |all| drop_rows(&counts, all).iter().map(|row| row.reason).collect::<Vec<_>>();
        assert_eq!(names(false), ["unknown_port", "no_endpoint"]);
        assert_eq!(names(true), ["unknown_port", "no_endpoint", "fragment"]);
    }
}
