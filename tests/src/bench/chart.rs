//! Charts as SVG, one file for light surroundings and one for dark ones.
//!
//! `docs/benchmarks/charts.yaml` says which there are; what they show comes from reports alone, so that the same reports give the same
//! bytes. Figures are bars with a whisker from the lowest to the highest round.

mod bars;
mod overview;
mod scale;
mod svg;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::report::{Report, Row, Spread};

pub use self::overview::{Point, overview};
pub use self::svg::Theme;

/// A chart as written down.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chart {
    /// Name of its files.
    pub name: String,
    /// Benchmark whose rows it shows.
    pub benchmark: String,
    /// Its title.
    pub title: String,
    /// What a bar is: unit and what to compare, for people.
    pub subtitle: String,
    /// What of a row is shown.
    pub figure: Shown,
    /// How figures become lengths.
    #[serde(default)]
    pub scale: ScaleKind,
    /// A line to compare with.
    #[serde(default)]
    pub line: Option<Line>,
    /// Bars of each group.
    pub series: Vec<Series>,
    /// Groups of bars, from the top.
    pub groups: Vec<Group>,
}

/// What of a row is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shown {
    /// Its value.
    Value,
    /// Its ratio to its reference.
    Ratio,
    /// Instructions of its path.
    Instructions,
}

/// How figures become lengths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleKind {
    /// Twice the figure, twice the length; from 0.
    #[default]
    Linear,
    /// Ten times the figure, one step more.
    Log,
}

/// A line across a chart.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Where.
    pub at: f64,
    /// What it stands for.
    pub label: String,
}

/// One bar in each group.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Series {
    /// Its name in the legend.
    pub label: String,
    /// Its colour.
    pub colour: Colour,
    /// Name of the case, `{}` standing for the group's key.
    pub case: String,
}

/// A group of bars.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its name at the side.
    pub label: String,
    /// What stands for `{}` in the cases of the series.
    pub key: String,
}

/// Colours by what they stand for; they can be told apart by the colour-blind, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    /// This project's, and others of its ways.
    Ours,
    /// A second way.
    Second,
    /// A third way.
    Third,
    /// Nothing in between.
    None,
    /// kube-proxy's rules for iptables.
    Iptables,
    /// kube-proxy's rules for nftables.
    Nftables,
}

/// A chart with figures in it.
#[derive(Clone, Debug)]
struct Filled<'a> {
    chart: &'a Chart,
    groups: Vec<(&'a str, Vec<Bar<'a>>)>,
    footer: String,
}

/// One bar.
#[derive(Clone, Copy, Debug)]
struct Bar<'a> {
    series: &'a Series,
    figure: Spread,
}

impl Shown {
    fn of(self, row: &Row) -> Option<Spread> {
        match self {
            Self::Value => Some(row.value),
            Self::Ratio => row.reference.as_ref().map(|reference| reference.ratio),
            Self::Instructions => {
                let count = f64::from(row.path.as_ref()?.instructions);
                Some(Spread { median: count, low: count, high: count })
            }
        }
    }
}

impl Chart {
    /// Draws it. `None` when the report has none of its cases.
    pub fn draw(&self, report: &Report, theme: Theme) -> Option<String> {
        let groups = self.groups.iter().filter_map(|group| {
            let bars: Vec<_> =
                self.series.iter().filter_map(|series| self.bar(report, series, group)).collect();
            (!bars.is_empty()).then_some((group.label.as_str(), bars))
        });
        let filled = Filled { chart: self, groups: groups.collect(), footer: footer(report) };
        (!filled.groups.is_empty()).then(|| bars::draw(&filled, theme))
    }

    fn bar<'a>(&'a self, report: &Report, series: &'a Series, group: &Group) -> Option<Bar<'a>> {
        let row = report.row(&series.case.replace("{}", &group.key))?;
        Some(Bar { series, figure: self.figure.of(row)? })
    }

    /// Cases that it would show and the report has not.
    pub fn missing(&self, report: &Report) -> Vec<String> {
        let cases = self.groups.iter().flat_map(|group| {
            self.series.iter().map(|series| series.case.replace("{}", &group.key)).collect::<Vec<_>>()
        });
        cases.filter(|case| report.row(case).is_none()).collect()
    }
}

/// On what and when the figures of a chart were taken.
pub fn footer(report: &Report) -> String {
    let machine = &report.machine;
    let day = report.taken.split('T').next().unwrap_or_default();
    format!(
        "{}, {} cores · Linux {} · commit {} · {day} · median and spread of {} rounds",
        machine.processor, machine.cores, machine.kernel, machine.commit, report.rounds
    )
}

/// Reads the charts.
///
/// # Errors
/// When the file is missing, or does not say what it should; the place is in the error.
pub fn read(directory: &Path) -> Result<Vec<Chart>> {
    let path = directory.join("charts.yaml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let charts: Vec<Chart> = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
    for chart in &charts {
        let plain = chart.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        ensure!(plain, "{}: {:?} is no name of a file", path.display(), chart.name);
        let named = chart.series.iter().all(|series| series.case.contains("{}")) || chart.groups.len() == 1;
        ensure!(named, "{}: {}: every group would show the same case", path.display(), chart.name);
    }
    Ok(charts)
}

#[cfg(test)]
mod tests;
