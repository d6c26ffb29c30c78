//! Groups of bars, lying.

use super::scale::Scale;
use super::svg::{Anchor, Canvas, Ink, Theme, width, wrapped};
use super::{Bar, Filled, ScaleKind, Series, Shown};
use crate::bench::report::table::number;

const WIDTH: f64 = 860.0;
const MARGIN: f64 = 20.0;
/// A bar with the space below it.
const PITCH: f64 = 18.0;
const THICKNESS: f64 = 14.0;
/// Space below a group.
const GAP: f64 = 12.0;
const LABEL: f64 = 13.0;
const SMALL: f64 = 11.0;
/// Room for a figure behind its bar.
const FIGURE: f64 = 72.0;

/// Draws a chart.
pub(super) fn draw(filled: &Filled<'_>, theme: Theme) -> String {
    let Filled { chart, groups, footer } = filled;
    let bars = || groups.iter().flat_map(|(_, bars)| bars);
    let used: Vec<&Series> =
        chart.series.iter().filter(|series| bars().any(|bar| std::ptr::eq(bar.series, *series))).collect();
    let keys = legend(&used);
    let labels = groups.iter().map(|(label, _)| width(label, LABEL)).fold(0.0, f64::max);
    let left = MARGIN + labels + 12.0;
    let right = WIDTH - MARGIN - FIGURE;
    let lines = keys.last().map_or(0.0, |(line, ..)| f64::from(*line) + 1.0);
    let subtitle = wrapped(&chart.subtitle, 12.5, WIDTH - 2.0 * MARGIN);
    let keys_top = 52.0 + subtitle.len() as f64 * 17.0;
    let top = keys_top
        + if used.len() > 1 { lines * 20.0 + 6.0 } else { 0.0 }
        + if chart.line.is_some() { 14.0 } else { 0.0 };
    let bottom = top + groups.iter().map(|(_, bars)| bars.len() as f64 * PITCH + GAP).sum::<f64>();
    let mut canvas = Canvas::new(theme, &chart.title, WIDTH, bottom + 58.0);
    canvas.text((MARGIN, 32.0), &chart.title, 18.0, Ink::Strong, Anchor::Start, true);
    for (line, text) in subtitle.iter().enumerate() {
        canvas.text((MARGIN, 52.0 + line as f64 * 17.0), text, 12.5, Ink::Muted, Anchor::Start, false);
    }
    if used.len() > 1 {
        for (line, x, series) in &keys {
            let y = keys_top + f64::from(*line) * 20.0;
            canvas.rect((*x, y), (12.0, 12.0), 3.0, theme.fill(series.colour));
            canvas.text((x + 18.0, y + 10.5), &series.label, 12.0, Ink::Strong, Anchor::Start, false);
        }
    }

    let line = chart.line.as_ref();
    // The line's place belongs on the axis, too.
    let figures = bars().map(|bar| bar.figure.high.min(bar.figure.median * 2.0));
    let scale = Scale::over(chart.scale, figures.chain(line.map(|line| line.at)));
    let place = |figure: f64| left + scale.place(figure) * (right - left);
    for tick in scale.ticks() {
        let x = place(tick);
        canvas.line((x, top - 4.0), (x, bottom - GAP + 4.0), theme.grid(), 1.0, false);
        canvas.text((x, bottom + 10.0), &short(tick), SMALL, Ink::Muted, Anchor::Middle, false);
    }
    let (mut y, mut figures) = (top, Vec::new());
    for (label, bars) in groups {
        let middle = y + bars.len() as f64 * PITCH / 2.0 + 2.5;
        canvas.text((left - 12.0, middle), label, LABEL, Ink::Strong, Anchor::End, false);
        for bar in bars {
            let end = draw_bar(&mut canvas, theme, bar, y, left, &place);
            figures.push(((end + 6.0, y + 11.5), written(bar, chart.figure)));
            y += PITCH;
        }
        y += GAP;
    }
    if let Some(line) = line {
        let x = place(line.at);
        canvas.line((x, top - 6.0), (x, bottom - GAP + 4.0), theme.mark(), 1.5, true);
        canvas.text((x, top - 10.0), &line.label, SMALL, Ink::Muted, Anchor::Middle, false);
    }
    // Above the line.
    for (at, figure) in &figures {
        canvas.figure(*at, figure);
    }
    if chart.scale == ScaleKind::Log {
        canvas.text((right + 8.0, bottom + 10.0), "log scale", SMALL, Ink::Muted, Anchor::Start, false);
    }
    canvas.text((MARGIN, bottom + 40.0), footer, SMALL, Ink::Muted, Anchor::Start, false);
    canvas.finish()
}

/// A bar with its whisker; gives where they end.
fn draw_bar(
    canvas: &mut Canvas,
    theme: Theme,
    bar: &Bar<'_>,
    y: f64,
    left: f64,
    place: &dyn Fn(f64) -> f64,
) -> f64 {
    let (end, middle) = (place(bar.figure.median), y + THICKNESS / 2.0);
    canvas.rect((left, y), ((end - left).max(1.0), THICKNESS), 2.0, theme.fill(bar.series.colour));
    let (low, high) = (place(bar.figure.low), place(bar.figure.high));
    if high - low > 2.0 {
        canvas.line((low, middle), (high, middle), theme.ink(Ink::Strong), 1.2, false);
        for x in [low, high] {
            canvas.line((x, middle - 3.5), (x, middle + 3.5), theme.ink(Ink::Strong), 1.2, false);
        }
    }
    end.max(high)
}

/// The figure of a bar in words.
fn written(bar: &Bar<'_>, shown: Shown) -> String {
    match shown {
        Shown::Ratio => format!("{:.2}×", bar.figure.median),
        Shown::Instructions => format!("{:.0}", bar.figure.median),
        Shown::Value => number(bar.figure.median),
    }
}

/// Which line of the legend, and where in it.
fn legend<'a>(series: &[&'a Series]) -> Vec<(u8, f64, &'a Series)> {
    let (mut line, mut x) = (0, MARGIN);
    let place = |series: &&'a Series| {
        let needed = 18.0 + width(&series.label, 12.0) + 18.0;
        if x + needed > WIDTH - MARGIN && x > MARGIN {
            line += 1;
            x = MARGIN;
        }
        let at = (line, x, *series);
        x += needed;
        at
    };
    series.iter().map(place).collect()
}

/// A figure along an axis.
fn short(figure: f64) -> String {
    match figure {
        0.0 => "0".to_owned(),
        large if large >= 1e6 => format!("{}M", round(large / 1e6)),
        large if large >= 1e4 => format!("{}k", round(large / 1e3)),
        other => round(other),
    }
}

/// Without the zeros that mean nothing.
fn round(figure: f64) -> String {
    let text = format!("{figure:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
