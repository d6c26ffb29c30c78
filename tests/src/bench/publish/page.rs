//! `docs/benchmarks/README.md`.

use std::fmt::Write as _;

use anyhow::Result;

use crate::bench::chart::Chart;
use crate::bench::goals::{self, Figure, Finding, Goal, State};
use crate::bench::report::table::number;
use crate::bench::report::{Report, Row, Spread};

const HEAD: &str = "\
# Benchmarks

Written by `cargo xtask bench publish` from what `cargo xtask bench all` measured: figures in `data/`, goals in `goals.yaml`, charts in
`charts.yaml`, all that was ever published in `history.jsonl`. `docs/performance.md` says what the figures mean and how to take them.

The machine is small and shared, so a figure is the median of several rounds, and what counts is its ratio to something else that was
measured in the same round. Whiskers and brackets show the lowest and the highest round.
";

/// The groups of goals by the letter that they begin with.
const GROUPS: [(&str, &str); 3] = [("D", "Datapath"), ("S", "Services"), ("C", "Control plane")];

/// How a state is called.
pub(super) fn word(state: State) -> &'static str {
    match state {
        State::Met => "met",
        State::Partly => "met as far as measured",
        State::Missed => "**not met**",
        State::Unmeasured => "not measured",
    }
}

/// The page.
pub(super) fn page(goals: &[Goal], charts: &[&Chart], reports: &[Report]) -> Result<String> {
    let mut text = HEAD.to_owned();
    let _ = writeln!(text, "\n| benchmark | when | commit | kernel | machine | rounds |");
    let _ = writeln!(text, "|---|---|---|---|---|---|");
    for report in reports {
        let (machine, day) = (&report.machine, report.taken.split('.').next().unwrap_or_default());
        let _ = writeln!(
            text,
            "| [{0}](#{0}) | {day} | {1} | {2} | {3}, {4} cores | {5} |",
            report.benchmark, machine.commit, machine.kernel, machine.processor, machine.cores, report.rounds
        );
    }
    let _ = writeln!(text, "\n## Goals\n\n{}", picture("goals", "Every goal and what was measured"));
    for (letter, name) in GROUPS {
        let group: Vec<_> = goals.iter().filter(|goal| goal.id.starts_with(letter)).collect();
        table(&mut text, name, &group, reports)?;
    }
    for report in reports {
        let _ = writeln!(text, "\n## {}", report.benchmark);
        for chart in charts.iter().filter(|chart| chart.benchmark == report.benchmark) {
            let _ = writeln!(text, "\n{}", picture(&chart.name, &chart.title));
        }
        rows(&mut text, report);
    }
    Ok(text)
}

/// A chart in the colours that its reader has around it.
fn picture(name: &str, title: &str) -> String {
    format!(
        "<picture><source media=\"(prefers-color-scheme: dark)\" srcset=\"{name}-dark.svg\">\
         <img src=\"{name}-light.svg\" alt=\"{title}\"></picture>"
    )
}

fn table(text: &mut String, name: &str, goals: &[&Goal], reports: &[Report]) -> Result<()> {
    let _ = writeln!(
        text,
        "\n### {name}\n\n| # | what | of others | goal | measured | |\n|---|---|---|---|---|---|"
    );
    for goal in goals {
        let findings = goal.judge(reports)?;
        let wanted: Vec<_> = findings.iter().map(|finding| finding.bound.text()).collect();
        let found: Vec<_> = findings.iter().map(measured).collect();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            goal.id,
            goal.title,
            goal.anchor.as_deref().unwrap_or("–"),
            wanted.join("<br>"),
            found.join("<br>"),
            word(goals::state(&findings))
        );
    }
    for goal in goals {
        if let Some(account) = &goal.account {
            let _ = writeln!(text, "\n**{}**: {}", goal.id, account.trim());
        }
    }
    Ok(())
}

fn measured(finding: &Finding<'_>) -> String {
    let Some(found) = &finding.found else { return "–".to_owned() };
    let figure = match &finding.bound.figure {
        Figure::Value(unit) => format!("{} {unit}", number(found.figure)),
        Figure::Ratio(_) => format!("{} ×", number(found.figure)),
    };
    if found.holds { figure } else { format!("**{figure}**") }
}

/// Every row, folded up.
fn rows(text: &mut String, report: &Report) {
    let counted = report.rows.iter().any(|row| row.path.is_some());
    let _ = writeln!(text, "\n<details><summary>All {} rows</summary>\n", report.rows.len());
    let head = if counted { " instructions | helpers |" } else { "" };
    let _ = writeln!(text, "| case | figure | ratio | to | goal |{head}");
    let _ = writeln!(text, "|---|--:|--:|---|---|{}", if counted { "--:|---|" } else { "" });
    for row in &report.rows {
        let _ = writeln!(text, "{}", line(row, counted));
    }
    let notes: Vec<_> = report.rows.iter().filter_map(|row| Some((row, row.note.as_ref()?))).collect();
    for (row, note) in notes {
        let _ = writeln!(text, "\n{}: {note}", row.case);
    }
    let _ = writeln!(text, "\n</details>");
}

fn line(row: &Row, counted: bool) -> String {
    let spread = |Spread { median, low, high }: Spread| {
        if low == high {
            number(median)
        } else {
            format!("{} ({}..{})", number(median), number(low), number(high))
        }
    };
    let (ratio, to) = row
        .reference
        .as_ref()
        .map_or_else(Default::default, |reference| (spread(reference.ratio), reference.to.clone()));
    let mut line = format!(
        "| {} | {} {} | {ratio} | {to} | {} |",
        row.case,
        spread(row.value),
        row.unit,
        row.goals.join(", ")
    );
    if counted {
        let path = row.path.as_ref();
        let instructions = path.map(|path| path.instructions.to_string()).unwrap_or_default();
        let _ = write!(
            line,
            " {instructions} | {} |",
            path.map(|path| path.helpers.join(", ")).unwrap_or_default()
        );
    }
    line
}
