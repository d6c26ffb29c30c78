//! All goals in one picture: how far each figure is from its limit, on whichever side.

use super::Colour;
use super::svg::{Anchor, Canvas, Ink, Theme, width};

/// Width of the picture; a row; and where figures end.
const WIDTH: f64 = 860.0;
const ROW: f64 = 21.0;
const MARGIN: f64 = 20.0;
const SIZE: f64 = 12.0;
/// Powers of ten on each side of the goal.
const REACH: f64 = 2.0;

/// One figure and its goal.
#[derive(Clone, Debug)]
pub struct Point {
    /// `D1`, and what it is.
    pub label: String,
    /// [`Bound::distance`](crate::bench::goals::Bound::distance): below 1 is good.
    pub distance: f64,
    /// Whether the bound holds.
    pub holds: bool,
    /// Figure and goal in words.
    pub text: String,
}

/// Draws them, better ones further to the right.
pub fn overview(points: &[Point], footer: &str, theme: Theme) -> String {
    let widest =
        |text: fn(&Point) -> &str| points.iter().map(|point| width(text(point), SIZE)).fold(0.0, f64::max);
    let left = MARGIN + widest(|point| &point.label) + 14.0;
    let right = WIDTH - MARGIN - widest(|point| &point.text) - 14.0;
    let (top, bottom) = (92.0, 92.0 + points.len() as f64 * ROW);
    let mut canvas = Canvas::new(theme, "Every goal and what was measured", WIDTH, bottom + 62.0);
    let met = points.iter().filter(|point| point.holds).count();
    let title = format!("{met} of {} conditions hold", points.len());
    canvas.text((MARGIN, 32.0), &title, 18.0, Ink::Strong, Anchor::Start, true);
    let subtitle = "How many times better or worse than its goal a figure is. Discs meet it, squares on a corner do not.";
    canvas.text((MARGIN, 52.0), subtitle, 12.5, Ink::Muted, Anchor::Start, false);
    let place = |factor: f64| {
        let power = if factor.is_nan() { 0.0 } else { factor.log10().clamp(-REACH, REACH) };
        left + (power + REACH) / (2.0 * REACH) * (right - left)
    };
    for (factor, label) in
        [(0.01, "100× worse"), (0.1, "10×"), (1.0, "goal"), (10.0, "10×"), (100.0, "100× better")]
    {
        let x = place(factor);
        let stroke = if factor == 1.0 { theme.mark() } else { theme.grid() };
        canvas.line(
            (x, top - 12.0),
            (x, bottom),
            stroke,
            if factor == 1.0 { 1.5 } else { 1.0 },
            factor == 1.0,
        );
        for y in [top - 18.0, bottom + 14.0] {
            canvas.text((x, y), label, 11.0, Ink::Muted, Anchor::Middle, false);
        }
    }
    for (index, point) in points.iter().enumerate() {
        let y = top + (index as f64 + 0.5) * ROW;
        let (colour, x) = (
            theme.fill(if point.holds { Colour::Ours } else { Colour::Iptables }),
            place(1.0 / point.distance),
        );
        canvas.text((left - 14.0, y + 4.0), &point.label, SIZE, Ink::Strong, Anchor::End, false);
        canvas.line((place(1.0), y), (x, y), colour, 2.0, false);
        canvas.dot((x, y), if point.holds { 5.0 } else { 6.0 }, colour, !point.holds);
        canvas.text((right + 14.0, y + 4.0), &point.text, SIZE, Ink::Muted, Anchor::Start, false);
    }
    canvas.text((MARGIN, bottom + 44.0), footer, 11.0, Ink::Muted, Anchor::Start, false);
    canvas.finish()
}
