//! An explanation for people.

use std::fmt::{self, Display, Write};

use super::{Candidate, Explanation};

/// Columns of the names at the left.
const NAMES: usize = 11;
/// Columns of a line.
const LINE: usize = 110;

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

/// A name and its text, broken into lines.
fn entry(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    let name = format!("{name:NAMES$}");
    let mut line = String::new();
    let mut head = name.as_str();
    for word in text.split(' ') {
        if !line.is_empty() && NAMES + line.chars().count() + word.chars().count() > LINE {
            writeln!(f, "{head:NAMES$} {}", line.trim_end())?;
            line.clear();
            head = "";
        }
        line.push_str(word);
        line.push(' ');
    }
    writeln!(f, "{head:NAMES$} {}", line.trim_end())
}
