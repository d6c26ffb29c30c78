//! An explanation for people.

use std::fmt::{self, Display, Write};

use super::{Candidate, Explanation};
use crate::observe::entry;

impl Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, protocol, .. } = self;
        if protocol == "ICMP" {
            writeln!(f, "ping of {} by {}", to.ip(), from.ip())?;
        } else {
            writeln!(f, "{protocol} {from} -> {to}")?;
        }
        writeln!(f)?;
        for problem in &self.problems {
            entry(f, "PROBLEM", problem)?;
        }
        entry(f, "enters", &self.enters.says)?;
        match &self.service {
            Some(service) => entry(f, "service", &service.says)?,
            None if self.connection.is_none() => entry(f, "service", "none at that address and port")?,
            None => {}
        }
        if let Some(connection) = &self.connection {
            entry(f, "connection", &connection.says)?;
        }
        for rule in &self.rules {
            entry(f, rule.rule, &rule.says)?;
        }
        for (at, candidate) in self.candidates.iter().enumerate() {
            entry(f, if at == 0 { "candidates" } else { "" }, &candidate_line(candidate))?;
        }
        let mut way = "";
        for step in &self.steps {
            let mut line = format!("{}: {}", step.at, step.does);
            if let Some((from, to)) = step.packet {
                let _ = write!(line, ": {from} -> {to}");
            }
            entry(f, if step.way == way { "" } else { step.way }, &line)?;
            way = step.way;
        }
        writeln!(f)?;
        entry(f, "VERDICT", &self.verdict.says)?;
        if let Some(advice) = &self.verdict.advice {
            entry(f, "to do", advice)?;
        }
        Ok(())
    }
}

fn candidate_line(candidate: &Candidate) -> String {
    let mut line = format!("{:5.1} %  {}", candidate.probability * 100.0, candidate.endpoint);
    if candidate.local {
        line.push_str(", on this node");
    }
    if candidate.chosen {
        line.push_str("  <- this packet");
    }
    if let Some(note) = candidate.note {
        let _ = write!(line, "  ({note})");
    }
    line
}
