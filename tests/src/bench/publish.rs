//! `publish`: what was measured, beside the goals and as charts, in `docs/benchmarks`.
//!
//! The last reports are copied to `data/`, a short form of them is appended to `history.jsonl`, and everything else is made of
//! those reports, `goals.yaml` and `charts.yaml` alone: [`render`] gives the same bytes wherever it runs, and a test compares.

mod history;
mod page;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::chart::{self, Chart, Point, Theme};
use super::goals::{self, Figure, Goal, State};
use super::report::Report;
use super::report::table::number;
use super::{Benchmark, keep};

pub use self::history::{History, read as history};

/// Where everything lies.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks")
}

/// Keeps the last reports of these benchmarks, those that are there, and draws everything anew. Gives their names, and what a
/// reader would miss: cases that a chart should show, goals without a measurement or an account.
///
/// # Errors
/// When none is there, a row answers no goal there is, or a file cannot be written.
pub fn publish(benchmarks: &[Benchmark]) -> Result<(Vec<&'static str>, Vec<String>)> {
    let (directory, goals) = (directory(), goals::read()?);
    let mut kept = Vec::new();
    for benchmark in benchmarks {
        let last = keep::last(*benchmark);
        if !last.exists() {
            continue;
        }
        let report = keep::read(&last)?;
        goals::check(&goals, &report)?;
        keep::save(&report, &data(&directory, *benchmark))?;
        history::append(&directory, &report)?;
        kept.push(benchmark.name());
    }
    ensure!(!kept.is_empty(), "no report in target/bench: run `cargo xtask bench all` first");
    draw()?;
    Ok((kept, missing(&directory)?))
}

/// Draws everything anew from the reports that were kept.
///
/// # Errors
/// When a file cannot be read or written, or says what it should not.
pub fn draw() -> Result<()> {
    let directory = directory();
    for (name, content) in render(&directory)? {
        let path = directory.join(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// The page and the charts, by name of the file.
///
/// # Errors
/// When goals, charts or reports cannot be read or do not fit each other.
pub fn render(directory: &Path) -> Result<BTreeMap<String, String>> {
    let (goals, charts, reports) = (goals::read()?, chart::read(directory)?, reports(directory)?);
    let mut files = BTreeMap::new();
    let points = points(&goals, &reports)?;
    let footer = reports.first().map(chart::footer).unwrap_or_default();
    for theme in Theme::ALL {
        files.insert(format!("goals-{}.svg", theme.name()), chart::overview(&points, &footer, theme));
        for chart in &charts {
            if let Some(svg) = of(&reports, chart).and_then(|report| chart.draw(report, theme)) {
                files.insert(format!("{}-{}.svg", chart.name, theme.name()), svg);
            }
        }
    }
    let drawn = |chart: &&Chart| files.contains_key(&format!("{}-light.svg", chart.name));
    let drawn: Vec<_> = charts.iter().filter(drawn).collect();
    let page = page::page(&goals, &drawn, &reports)?;
    files.insert("README.md".to_owned(), page);
    Ok(files)
}

/// What a reader would miss.
///
/// # Errors
/// As [`render`].
pub fn missing(directory: &Path) -> Result<Vec<String>> {
    let (goals, charts, reports) = (goals::read()?, chart::read(directory)?, reports(directory)?);
    let mut missing = Vec::new();
    for chart in &charts {
        let cases = of(&reports, chart)
            .map_or_else(|| vec![format!("a report of {}", chart.benchmark)], |report| chart.missing(report));
        missing.extend(cases.into_iter().map(|case| format!("chart {}: {case}", chart.name)));
    }
    for goal in &goals {
        match goals::state(&goal.judge(&reports)?) {
            State::Met => {}
            State::Unmeasured => missing.push(format!("goal {}: not measured", goal.id)),
            state if goal.account.is_none() => {
                missing.push(format!("goal {}, {}: no account", goal.id, page::word(state)));
            }
            _ => {}
        }
    }
    Ok(missing)
}

/// The reports that were kept.
fn reports(directory: &Path) -> Result<Vec<Report>> {
    let files = Benchmark::ALL.map(|benchmark| data(directory, benchmark));
    files.iter().filter(|file| file.exists()).map(|file| keep::read(file)).collect()
}

fn data(directory: &Path, benchmark: Benchmark) -> PathBuf {
    directory.join("data").join(benchmark.name()).with_extension("json")
}

fn of<'a>(reports: &'a [Report], chart: &Chart) -> Option<&'a Report> {
    reports.iter().find(|report| report.benchmark == chart.benchmark)
}

/// Every measured bound of every goal.
fn points(goals: &[Goal], reports: &[Report]) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    for goal in goals {
        for finding in goal.judge(reports)? {
            let Some(found) = &finding.found else { continue };
            let bound = finding.bound;
            let sign = bound.sign();
            let (figure, limit) = (number(found.figure), bound.limit);
            let text = match &bound.figure {
                Figure::Value(unit) => format!("{figure} ({sign} {limit} {unit})"),
                Figure::Ratio(_) => format!("{figure}× ({sign} {limit}×)"),
            };
            points.push(Point {
                label: format!("{} · {}", shortened(&goal.title, 44), goal.row(bound)),
                distance: bound.distance(found.figure),
                holds: found.holds,
                text,
            });
        }
    }
    Ok(points)
}

/// The beginning of a text, in whole words.
fn shortened(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    let mut short = String::new();
    for word in text.split_whitespace() {
        if short.chars().count() + word.chars().count() >= length {
            break;
        }
        short = format!("{short}{}{word}", if short.is_empty() { "" } else { " " });
    }
    format!("{} …", short.trim_end_matches([',', ';']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_and_the_charts_are_those_of_the_reports_that_were_kept() {
        let directory = directory();
        let files = render(&directory).unwrap();
        for (name, content) in &files {
            let path = directory.join(name);
            let found = fs::read_to_string(&path).unwrap_or_default();
            assert!(found == *content, "{name}: `cargo xtask bench publish --draw` writes it anew");
        }
        for entry in fs::read_dir(&directory).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.ends_with(".svg") || files.contains_key(&name), "{name} is no chart any more");
        }
        let newest = history(&directory).unwrap();
        for report in reports(&directory).unwrap() {
            let known = newest.iter().rev().find(|old| old.benchmark == report.benchmark);
            assert_eq!(
                known.map(|old| &old.taken),
                Some(&report.taken),
                "{} is not in the history",
                report.benchmark
            );
        }
    }

    #[test]
    fn long_titles_end_at_a_word() {
        assert_eq!(shortened("a packet to no Service", 30), "a packet to no Service");
        assert_eq!(shortened("flat in the number, of Services", 20), "flat in the number …");
    }

    #[test]
    fn a_goal_that_is_not_met_has_an_account_of_why() {
        let goals: Vec<_> = missing(&directory()).unwrap();
        let goals: Vec<_> = goals.iter().filter(|missing| missing.ends_with("no account")).collect();
        assert!(
            goals.is_empty(),
            "write one into goals.yaml, then `cargo xtask bench publish --draw`: {goals:#?}"
        );
    }
}
