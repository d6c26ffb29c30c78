//! Figures to lengths.

use super::ScaleKind;

/// An axis from its beginning to its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    kind: ScaleKind,
    from: f64,
    to: f64,
}

impl Scale {
    /// An axis on which every one of these figures has a place, ending at a round number.
    pub(super) fn over(kind: ScaleKind, figures: impl Iterator<Item = f64>) -> Self {
        let figures: Vec<_> = figures.filter(|figure| figure.is_finite()).collect();
        let most = figures.iter().copied().fold(0.0, f64::max);
        match kind {
            ScaleKind::Linear => {
                let step = step(most);
                Self { kind, from: 0.0, to: ((most / step).ceil() * step).max(step) }
            }
            ScaleKind::Log => {
                let positive = figures.iter().copied().filter(|figure| *figure > 0.0);
                let least = positive.fold(f64::INFINITY, f64::min);
                let least = if least.is_finite() { least } else { 1.0 };
                let from = 10f64.powf((least.log10() - 0.05).floor());
                Self { kind, from, to: 10f64.powf(most.max(least).log10().ceil()).max(from * 10.0) }
            }
        }
    }

    /// Where a figure lies, from 0 to 1.
    pub(super) fn place(self, figure: f64) -> f64 {
        let part = match self.kind {
            ScaleKind::Linear => (figure - self.from) / (self.to - self.from),
            ScaleKind::Log => (figure.max(self.from) / self.from).log10() / (self.to / self.from).log10(),
        };
        part.clamp(0.0, 1.0)
    }

    /// Figures to write along the axis.
    pub(super) fn ticks(self) -> Vec<f64> {
        match self.kind {
            ScaleKind::Linear => {
                let step = step(self.to);
                let count = (self.to / step).round() as u32;
                (0..=count).map(|tick| f64::from(tick) * step).collect()
            }
            ScaleKind::Log => {
                let (from, to) = (self.from.log10().round() as i32, self.to.log10().round() as i32);
                (from..=to).map(|power| 10f64.powi(power)).collect()
            }
        }
    }
}

/// Distance of ticks, so that four to eight of them reach a figure: 1, 2 or 5 of some power of ten.
fn step(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf((most / 4.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    steps.into_iter().rev().find(|step| most / step >= 4.0).unwrap_or(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_axis_begins_at_nothing_and_ends_at_a_round_number() {
        let scale = Scale::over(ScaleKind::Linear, [3.0, 97.0].into_iter());
        assert_eq!(scale.ticks(), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!((scale.place(0.0), scale.place(50.0), scale.place(200.0)), (0.0, 0.5, 1.0));
        for most in [0.011, 0.9, 1.2, 4.0, 37.0, 399.0, 52_341.0] {
            let ticks = Scale::over(ScaleKind::Linear, std::iter::once(most)).ticks();
            assert!((4..=11).contains(&ticks.len()) && *ticks.last().unwrap() >= most, "{most}: {ticks:?}");
        }
    }

    #[test]
    fn a_logarithmic_axis_has_room_below_its_least_figure() {
        let scale = Scale::over(ScaleKind::Log, [1.0, 800.0].into_iter());
        assert_eq!(scale.ticks(), [0.1, 1.0, 10.0, 100.0, 1000.0]);
        assert!((scale.place(10.0) - 0.5).abs() < 1e-9);
        assert_eq!(scale.place(0.0), 0.0);
    }

    #[test]
    fn nothing_to_show_is_no_trouble() {
        for kind in [ScaleKind::Linear, ScaleKind::Log] {
            assert!(Scale::over(kind, std::iter::empty()).ticks().len() >= 2);
        }
    }
}
