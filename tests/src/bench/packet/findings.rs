//! From figures of rounds to rows that answer goals.

use crate::bench::report::{PathLength, Row, ratios};

/// The reference of what is repeated on one packet, and of what changes tables.
pub(super) const LOOKUPS: &str = "hash_lookups";
pub(super) const INSERT: &str = "lru_insert";

/// A case, and what each round said.
pub(super) struct Measured {
    case: String,
    times: Vec<f64>,
    reference: Option<(String, Vec<f64>)>,
    path: Option<PathLength>,
}

/// All cases in the order in which they were first measured.
#[derive(Default)]
pub(super) struct Samples(Vec<Measured>);

impl Samples {
    /// A figure of one round, and what it is compared with.
    pub(super) fn add(&mut self, case: &str, time: f64, reference: Option<(&str, f64)>) {
        let measured = match self.0.iter_mut().position(|measured| measured.case == case) {
            Some(at) => &mut self.0[at],
            None => {
                self.0.push(Measured {
                    case: case.to_owned(),
                    times: Vec::new(),
                    reference: reference.map(|(name, _)| (name.to_owned(), Vec::new())),
                    path: None,
                });
                let last = self.0.len() - 1;
                &mut self.0[last]
            }
        };
        measured.times.push(time);
        if let (Some((_, figures)), Some((_, reference))) = (&mut measured.reference, reference) {
            figures.push(reference);
        }
    }

    /// The length of a case's path.
    pub(super) fn path(&mut self, case: &str, path: &Option<PathLength>) {
        if let Some(measured) = self.0.iter_mut().find(|measured| measured.case == case) {
            measured.path.clone_from(path);
        }
    }

    fn find(&self, case: &str) -> Option<&Measured> {
        self.0.iter().find(|measured| measured.case == case)
    }

    /// The rows, and those that several cases answer together.
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<_> = self.0.iter().map(Measured::row).collect();
        rows.extend(self.0.iter().filter_map(|six| self.families(six)));
        rows.extend(self.longest());
        rows
    }

    /// What IPv6 costs more than IPv4.
    fn families(&self, six: &Measured) -> Option<Row> {
        let four = self.find(&six.case.replace("ipv6", "ipv4"))?;
        if four.case == six.case || !is_established(&six.case) {
            return None;
        }
        let row = Row::new(format!("{}, IPv6 to IPv4", six.case.replace("ipv6 ", "")), "ns", &six.times);
        let row = row.ratios(&four.case, &ratios(&six.times, &four.times));
        Some(if six.case.contains(" tcp ") { row.goal("D3") } else { row })
    }

    /// The longest path of an established IPv4 flow, and the one with the most helpers.
    fn longest(&self) -> Vec<Row> {
        let paths = || {
            let four = self.0.iter().filter(|measured| measured.case.contains("ipv4"));
            four.filter(|measured| is_established(&measured.case))
                .filter_map(|measured| Some((measured, measured.path.as_ref()?)))
        };
        let mut rows = Vec::new();
        if let Some((measured, path)) = paths().max_by_key(|(_, path)| path.instructions) {
            let row = Row::new("longest established IPv4 path", "instructions", &[path.instructions.into()]);
            rows.push(row.goal("D9").note(measured.case.clone()));
        }
        let called =
            |path: &PathLength| path.helpers.iter().filter(|helper| !helper.starts_with("redirect")).count();
        if let Some((measured, path)) = paths().max_by_key(|(_, path)| called(path)) {
            let row = Row::new("most helper calls, established IPv4", "calls", &[called(path) as f64]);
            let note = format!("{}: {}; the redirect is not counted", measured.case, path.helpers.join(", "));
            rows.push(row.goal("D8").note(note));
        }
        rows
    }
}

impl Measured {
    fn row(&self) -> Row {
        let mut row = Row::new(&self.case, "ns", &self.times).path(self.path.clone());
        if let Some((name, figures)) = &self.reference {
            row = row.ratios(name, &ratios(&self.times, figures));
        }
        match goal(&self.case) {
            Some(goal) => row.goal(goal),
            None => row,
        }
    }
}

fn is_established(case: &str) -> bool {
    case.ends_with(" request") || case.ends_with(" response")
}

/// The goal that a case answers by itself.
fn goal(case: &str) -> Option<&'static str> {
    let xdp = case.starts_with("xdp ");
    match case {
        _ if case.ends_with(" foreign") => Some("D4"),
        _ if xdp && is_established(case) => case.contains("ipv4 tcp").then_some("D1"),
        _ if is_established(case) => Some("D7"),
        _ if case.ends_with("from_pod new flow") => case.contains("ipv4 tcp").then_some("D2"),
        _ if case.ends_with("new flow, 10,000 Services") => Some("D5/10k"),
        _ if case.ends_with(", 100,000 Services") => Some("D5/100k"),
        _ if case.ends_with("65,536 flows in turn") => Some("D6"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_answer_goals() {
        for (case, expected) in [
            ("xdp ipv4 tcp node port request", Some("D1")),
            ("xdp ipv6 tcp node port request", None),
            ("stack ipv6 udp to_pod response", Some("D7")),
            ("xdp ipv4 udp foreign", Some("D4")),
            ("redirect ipv4 tcp from_pod new flow", Some("D2")),
            ("redirect ipv4 tcp from_pod new flow, affinity", None),
            ("new flow, 100,000 Services", Some("D5/100k")),
        ] {
            assert_eq!(goal(case), expected, "{case}");
        }
    }

    #[test]
    fn rows_of_rounds() {
        let mut samples = Samples::default();
        for round in [1.0, 2.0, 3.0] {
            samples.add("stack ipv4 tcp to_pod response", 10.0 * round, Some((LOOKUPS, 100.0)));
            samples.add("stack ipv6 tcp to_pod response", 12.0 * round, Some((LOOKUPS, 100.0)));
        }
        for (case, instructions, helper) in [
            ("stack ipv4 tcp to_pod response", 300, "redirect_peer"),
            ("stack ipv6 tcp to_pod response", 400, "csum_update"),
        ] {
            let helpers = vec![helper.to_owned()];
            samples.path(case, &Some(PathLength { instructions, rows: 1, helpers }));
        }
        let rows = samples.rows();
        let row = |case: &str| rows.iter().find(|row| row.case == case).unwrap();
        assert_eq!(row("stack ipv4 tcp to_pod response").reference.as_ref().unwrap().ratio.median, 0.2);
        let families = row("stack tcp to_pod response, IPv6 to IPv4");
        assert_eq!(
            (families.reference.as_ref().unwrap().ratio.median, families.goals[0].as_str()),
            (1.2, "D3")
        );
        assert_eq!(row("longest established IPv4 path").value.median, 300.0);
        assert_eq!(row("most helper calls, established IPv4").value.median, 0.0);
    }
}
