//! A condition: `<= 25 ns` of a value, `>= 1.8` of a ratio.

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::bench::report::Row;

/// What has to hold for a row.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Written")]
pub struct Bound {
    /// Name of the row, if it is not the goal's.
    pub row: Option<String>,
    /// What of the row is meant.
    pub figure: Figure,
    /// `<=`, `>=`, `<` or `>`.
    operator: Operator,
    /// The limit.
    pub limit: f64,
}

/// What of a row a bound is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Figure {
    /// The value, in this unit.
    Value(String),
    /// The ratio to something, which these words name.
    Ratio(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    AtMost,
    AtLeast,
    Below,
    Above,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    row: Option<String>,
    value: Option<String>,
    ratio: Option<String>,
    of: Option<String>,
}

impl TryFrom<Written> for Bound {
    type Error = anyhow::Error;

    fn try_from(Written { row, value, ratio, of }: Written) -> Result<Self> {
        let (text, is_ratio) = match (&value, &ratio) {
            (Some(value), None) => (value, false),
            (None, Some(ratio)) => (ratio, true),
            _ => bail!("a bound has either a `value` or a `ratio`"),
        };
        let mut words = text.split_whitespace();
        let operator = match words.next() {
            Some("<=") => Operator::AtMost,
            Some(">=") => Operator::AtLeast,
            Some("<") => Operator::Below,
            Some(">") => Operator::Above,
            _ => bail!("{text:?} does not begin with <=, >=, < or >"),
        };
        let limit = words.next().and_then(|word| word.parse().ok());
        let limit = limit.with_context(|| format!("{text:?} has no number"))?;
        let figure = match (is_ratio, words.next(), of) {
            (true, None, Some(of)) => Figure::Ratio(of),
            (false, Some(unit), None) => Figure::Value(unit.to_owned()),
            _ => bail!("{text:?}: a value has a unit, a ratio says of what (`of`)"),
        };
        Ok(Self { row, figure, operator, limit })
    }
}

impl Bound {
    /// What the bound is about, of a row, in the bound's unit.
    ///
    /// # Errors
    /// When the row has no reference, or a unit that is another kind of thing.
    pub fn figure(&self, row: &Row) -> Result<f64> {
        match &self.figure {
            Figure::Ratio(_) => {
                let reference = row.reference.as_ref().context("it has no ratio")?;
                Ok(reference.ratio.median)
            }
            Figure::Value(unit) => Ok(row.value.median * factor(&row.unit, unit)?),
        }
    }

    /// Whether a figure is good enough.
    pub fn holds(&self, figure: f64) -> bool {
        match self.operator {
            Operator::AtMost => figure <= self.limit,
            Operator::AtLeast => figure >= self.limit,
            Operator::Below => figure < self.limit,
            Operator::Above => figure > self.limit,
        }
    }

    /// Whether more is better.
    pub fn wants_more(&self) -> bool {
        matches!(self.operator, Operator::AtLeast | Operator::Above)
    }

    /// How far a figure is from the limit: below 1 it is good, 2 is half as good as it should be. Infinite where nothing is
    /// allowed and something was found.
    pub fn distance(&self, figure: f64) -> f64 {
        let (over, under) = if self.wants_more() { (self.limit, figure) } else { (figure, self.limit) };
        if over <= 0.0 {
            0.0
        } else if under <= 0.0 {
            f64::INFINITY
        } else {
            over / under
        }
    }

    /// `≤`, `≥`, `<` or `>`.
    pub fn sign(&self) -> &'static str {
        match self.operator {
            Operator::AtMost => "≤",
            Operator::AtLeast => "≥",
            Operator::Below => "<",
            Operator::Above => ">",
        }
    }

    /// As people write it: `≤ 25 ns`.
    pub fn text(&self) -> String {
        let sign = self.sign();
        match &self.figure {
            Figure::Value(unit) => format!("{sign} {} {unit}", self.limit),
            Figure::Ratio(of) => format!("{sign} {} × {of}", self.limit),
        }
    }
}

/// Units that measure the same thing, as multiples of the first.
const UNITS: &[&[(&str, f64)]] = &[
    &[("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)],
    &[
        ("bytes", 1.0),
        ("kB", 1e3),
        ("MB", 1e6),
        ("KiB", 1024.0),
        ("MiB", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
    ],
];

/// What a figure in one unit is to be multiplied with to be in another.
fn factor(from: &str, to: &str) -> Result<f64> {
    if from == to {
        return Ok(1.0);
    }
    let of = |unit: &str| {
        let found = UNITS.iter().enumerate().find_map(|(kind, units)| {
            units.iter().find(|(name, _)| *name == unit).map(|(_, size)| (kind, *size))
        });
        found.with_context(|| format!("its unit is {from}, the goal's {to}"))
    };
    let ((kind, size), (wanted, unit)) = (of(from)?, of(to)?);
    ensure!(kind == wanted, "its unit is {from}, the goal's {to}");
    Ok(size / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(value: &str) -> Bound {
        Written { row: None, value: Some(value.to_owned()), ratio: None, of: None }.try_into().unwrap()
    }

    #[test]
    fn bounds_hold_up_to_their_limit() {
        let at_most = bound("<= 25 ns");
        assert!(at_most.holds(25.0) && !at_most.holds(25.1));
        assert_eq!((at_most.distance(50.0), at_most.text().as_str()), (2.0, "≤ 25 ns"));
        let at_least = bound(">= 10 /s");
        assert!(at_least.holds(10.0) && !at_least.holds(9.9));
        assert_eq!((at_least.distance(5.0), at_least.distance(0.0)), (2.0, f64::INFINITY));
        let above = bound("> 1 /s");
        assert!(above.holds(1.1) && !above.holds(1.0));
        assert_eq!(
            (bound("<= 0 flows").distance(0.0), bound("<= 0 flows").distance(1.0)),
            (0.0, f64::INFINITY)
        );
    }

    #[test]
    fn units_of_one_kind_are_converted() {
        let row = |unit| Row::new("a", unit, &[3.0]);
        assert_eq!(bound("<= 1 us").figure(&row("ms")).unwrap(), 3000.0);
        assert_eq!(bound("<= 1 MB").figure(&row("KiB")).unwrap(), 0.003_072);
        assert_eq!(bound("<= 1 flows").figure(&row("flows")).unwrap(), 3.0);
        assert!(bound("<= 1 us").figure(&row("bytes")).is_err());
        assert!(bound("<= 1 us").figure(&row("flows")).is_err());
    }
}
