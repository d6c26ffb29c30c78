//! Covering arrays: few rows in which every pair of values occurs.
//!
//! Most faults show when two things meet, so a table that has every pair of values of every two factors finds nearly what
//! the full product would, in a hundredth of its rows. Where more than two things decide together, [`Factors::together`]
//! asks for all their combinations. What cannot be is left out by [`Rule`]s. Same input, same rows.

use std::collections::BTreeSet;

/// Combinations that cannot be.
pub struct Rule {
    /// What forbids them.
    pub why: &'static str,
    /// The factors it speaks of, by position.
    pub factors: &'static [usize],
    /// Whether it forbids these values, which are given in the order of `factors`.
    pub forbids: fn(&[usize]) -> bool,
}

/// What is to be combined.
pub struct Factors<'a> {
    /// How many values each factor has.
    pub sizes: &'a [usize],
    /// What cannot be.
    pub rules: &'a [Rule],
    /// Sets of factors of which all combinations are wanted, besides all pairs.
    pub together: &'a [&'a [usize]],
}

/// Values of some factors: one thing to be covered.
type Target = Vec<(usize, usize)>;
/// A row in the making.
type Partial = Vec<Option<usize>>;

/// How many rows are tried for each one that is taken.
const CANDIDATES: u32 = 24;

impl Factors<'_> {
    /// Rows (one value per factor) that break no rule and in which everything wanted occurs that can.
    pub fn rows(&self) -> Vec<Vec<usize>> {
        let mut open = self.targets();
        let mut random = Lcg(1);
        let mut rows = Vec::new();
        while let Some(seed) = open.first().cloned() {
            let candidates = (0..CANDIDATES).filter_map(|_| self.candidate(&seed, &open, &mut random));
            // The first of the best, so that the outcome does not hang on how a maximum is searched.
            let mut best: Option<(usize, Vec<usize>)> = None;
            for row in candidates {
                let gain = open.iter().filter(|target| is_in(target, &row)).count();
                if best.as_ref().is_none_or(|(most, _)| gain > *most) {
                    best = Some((gain, row));
                }
            }
            let Some((_, row)) = best else {
                // `targets` has proven that there is a row.
                unreachable!("{seed:?} can be completed");
            };
            open.retain(|target| !is_in(target, &row));
            rows.push(row);
        }
        rows
    }

    /// Everything that is wanted and possible.
    pub fn targets(&self) -> BTreeSet<Target> {
        let mut sets: Vec<Vec<usize>> = self.together.iter().map(|set| set.to_vec()).collect();
        for first in 0..self.sizes.len() {
            sets.extend((first + 1..self.sizes.len()).map(|second| vec![first, second]));
        }
        let mut targets = BTreeSet::new();
        for set in sets {
            let mut combinations: Vec<Target> = vec![Vec::new()];
            for factor in set {
                combinations = combinations
                    .into_iter()
                    .flat_map(|begin| {
                        (0..self.sizes[factor]).map(move |value| {
                            let mut longer = begin.clone();
                            longer.push((factor, value));
                            longer
                        })
                    })
                    .collect();
            }
            targets.extend(combinations.into_iter().filter(|target| self.is_possible(target)));
        }
        targets
    }

    /// The rule that a row breaks, if any.
    pub fn broken(&self, row: &[usize]) -> Option<&Rule> {
        let row: Partial = row.iter().map(|value| Some(*value)).collect();
        self.rules.iter().find(|rule| breaks(rule, &row))
    }

    fn is_possible(&self, target: &Target) -> bool {
        let mut row = self.begin(target);
        self.complete(&mut row)
    }

    fn begin(&self, target: &Target) -> Partial {
        let mut row = vec![None; self.sizes.len()];
        for (factor, value) in target {
            row[*factor] = Some(*value);
        }
        row
    }

    fn is_allowed(&self, row: &Partial) -> bool {
        !self.rules.iter().any(|rule| breaks(rule, row))
    }

    /// Fills in what is missing, by trying; leaves the row as it was when nothing fits.
    fn complete(&self, row: &mut Partial) -> bool {
        if !self.is_allowed(row) {
            return false;
        }
        let Some(factor) = row.iter().position(Option::is_none) else { return true };
        for value in 0..self.sizes[factor] {
            row[factor] = Some(value);
            if self.complete(row) {
                return true;
            }
        }
        row[factor] = None;
        false
    }

    /// A row with `seed` in it, its other values chosen one by one for what they cover.
    fn candidate(&self, seed: &Target, open: &BTreeSet<Target>, random: &mut Lcg) -> Option<Vec<usize>> {
        let mut row = self.begin(seed);
        let mut missing: Vec<usize> = (0..row.len()).filter(|factor| row[*factor].is_none()).collect();
        while !missing.is_empty() {
            let factor = missing.swap_remove(random.below(missing.len()));
            let turn = random.below(self.sizes[factor]);
            let mut best: Option<(usize, usize)> = None;
            for step in 0..self.sizes[factor] {
                let value = (turn + step) % self.sizes[factor];
                row[factor] = Some(value);
                let gain = open.iter().filter(|target| newly_in(target, &row, factor)).count();
                if best.is_none_or(|(most, _)| gain > most) && self.complete(&mut row.clone()) {
                    best = Some((gain, value));
                }
            }
            row[factor] = Some(best?.1);
        }
        row.into_iter().collect()
    }
}

fn breaks(rule: &Rule, row: &Partial) -> bool {
    let values: Option<Vec<usize>> = rule.factors.iter().map(|factor| row[*factor]).collect();
    values.is_some_and(|values| (rule.forbids)(&values))
}

fn is_in(target: &Target, row: &[usize]) -> bool {
    target.iter().all(|(factor, value)| row[*factor] == *value)
}

/// Whether the value just given to `factor` completes the target.
fn newly_in(target: &Target, row: &Partial, factor: usize) -> bool {
    target.iter().any(|(it, _)| *it == factor)
        && target.iter().all(|(factor, value)| row[*factor] == Some(*value))
}

/// A generator of numbers that begins with the same ones everywhere (constants of Knuth's MMIX).
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % limit.max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: &[usize] = &[2, 3, 4, 2, 5];

    fn covers(rows: &[Vec<usize>], target: &Target) -> bool {
        rows.iter().any(|row| is_in(target, row))
    }

    #[test]
    fn every_pair_occurs_in_few_rows() {
        let factors = Factors { sizes: SIZES, rules: &[], together: &[] };
        let (rows, targets) = (factors.rows(), factors.targets());
        // 2*3 + 2*4 + 2*2 + 2*5 + 3*4 + 3*2 + 3*5 + 4*2 + 4*5 + 2*5
        assert_eq!(targets.len(), 99);
        assert!(targets.iter().all(|target| covers(&rows, target)));
        // No table can do with less than the two largest factors' product, the full one has 240 rows.
        assert!((20..=26).contains(&rows.len()), "{} rows", rows.len());
    }

    #[test]
    fn no_row_breaks_a_rule_and_nothing_possible_is_left_out() {
        const RULES: &[Rule] = &[
            Rule { why: "the first wants the second", factors: &[0, 1], forbids: |v| v[0] == 1 && v[1] != 2 },
            Rule { why: "the second wants the last", factors: &[1, 4], forbids: |v| v[0] == 2 && v[1] > 1 },
        ];
        let factors = Factors { sizes: SIZES, rules: RULES, together: &[] };
        let (rows, targets) = (factors.rows(), factors.targets());
        assert!(rows.iter().all(|row| factors.broken(row).is_none()));
        assert!(targets.iter().all(|target| covers(&rows, target)));
        // What follows from both rules together is impossible, too: first = 1 allows two values of the last only.
        assert!(!targets.contains(&vec![(0, 1), (4, 3)]));
        assert!(targets.contains(&vec![(0, 1), (4, 1)]));
        assert_eq!(factors.broken(&[1, 0, 0, 0, 0]).map(|rule| rule.why), Some("the first wants the second"));
    }

    #[test]
    fn more_than_pairs_on_request() {
        let factors = Factors { sizes: SIZES, rules: &[], together: &[&[0, 1, 4]] };
        let rows = factors.rows();
        for first in 0..2 {
            for second in 0..3 {
                for last in 0..5 {
                    assert!(covers(&rows, &vec![(0, first), (1, second), (4, last)]));
                }
            }
        }
    }

    #[test]
    fn same_input_same_rows() {
        let factors = Factors { sizes: SIZES, rules: &[], together: &[] };
        assert_eq!(factors.rows(), factors.rows());
    }
}
