//! A reader of the text format of Prometheus that is as strict as `promtool check metrics` and some more: names, order,
//! types, no series twice, histograms that add up.

use std::collections::{BTreeMap, BTreeSet};

/// Labels of a sample.
pub(crate) type Labels = BTreeMap<String, String>;

/// A page of metrics.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Types by family.
    pub(crate) kinds: BTreeMap<String, String>,
    /// Samples by name and labels.
    samples: BTreeMap<String, BTreeMap<Labels, f64>>,
}

impl Page {
    /// Reads a page; panics with the line that is wrong.
    pub(crate) fn read(text: &str) -> Self {
        let mut page = Self::default();
        let (mut current, mut finished) = (String::new(), BTreeSet::new());
        assert!(text.ends_with('\n'), "the last line ends");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert!(!help.is_empty() && is_name(name) && !finished.contains(name), "{line}");
                finished.insert(std::mem::replace(&mut current, name.to_owned()));
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert!(name == current && ["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(kind != "counter" || name.ends_with("_total"), "a counter ends in _total: {line}");
                assert!(page.kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
            } else {
                page.sample(line, &current);
            }
        }
        page.histograms_add_up();
        page
    }

    fn sample(&mut self, line: &str, family: &str) {
        let (name, labels, value) = take_apart(line);
        let kind = self.kinds.get(family).unwrap_or_else(|| panic!("before its family: {line}"));
        let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("among {family}: {line}"));
        let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        assert!(suffixes.contains(&suffix), "{line}");
        assert!(kind == "gauge" || value >= 0.0, "{line}");
        let before = self.samples.entry(name).or_default().insert(labels, value);
        assert!(before.is_none(), "twice: {line}");
    }

    fn histograms_add_up(&self) {
        for (family, _) in self.kinds.iter().filter(|(_, kind)| *kind == "histogram") {
            let mut by_series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
            for (labels, count) in self.all(&format!("{family}_bucket")) {
                let mut labels = labels.clone();
                let bound = labels.remove("le").expect("a bucket has a bound");
                let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
                by_series.entry(labels).or_default().push((bound, count));
            }
            assert!(!by_series.is_empty(), "{family} has no series");
            for (labels, mut buckets) in by_series {
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{family}: {buckets:?}");
                let (bound, most) = *buckets.last().unwrap();
                let count = self.samples[&format!("{family}_count")][&labels];
                assert!(bound.is_infinite() && most == count, "{family}: {buckets:?}, {count}");
                assert!(
                    self.samples[&format!("{family}_sum")].contains_key(&labels),
                    "{family} lacks its sum"
                );
            }
        }
    }

    /// All samples of a name.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = (&Labels, f64)> {
        self.samples.get(name).into_iter().flatten().map(|(labels, value)| (labels, *value))
    }

    /// The sum of the samples of a name that have these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has =
            |of: &Labels| labels.iter().all(|(name, value)| of.get(*name).is_some_and(|it| it == value));
        self.all(name).filter(|(labels, _)| has(labels)).map(|(_, value)| value).sum()
    }

    /// Names of labels by family.
    pub(crate) fn label_names(&self, family: &str) -> BTreeSet<&str> {
        let names = ["", "_count"].map(|suffix| format!("{family}{suffix}"));
        let labels = names.iter().flat_map(|name| self.samples.get(name)).flatten();
        labels.flat_map(|(labels, _)| labels.keys().map(String::as_str)).collect()
    }
}

fn is_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|other| other.is_ascii_alphanumeric() || other == '_')
}

/// Name, labels and value of a line.
fn take_apart(line: &str) -> (String, Labels, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
    let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
    let Some((name, rest)) = series.split_once('{') else {
        assert!(is_name(series), "{line}");
        return (series.to_owned(), Labels::new(), value);
    };
    assert!(is_name(name), "{line}");
    let mut rest = rest.strip_suffix('}').unwrap_or_else(|| panic!("{line}")).chars();
    let mut labels = Labels::new();
    loop {
        let label: String = rest.by_ref().take_while(|character| *character != '=').collect();
        assert!(is_name(&label) && rest.next() == Some('"'), "{line}");
        let mut text = String::new();
        loop {
            match rest.next() {
                Some('"') => break,
                Some('\\') => text.push(match rest.next() {
                    Some('n') => '\n',
                    Some(escaped @ ('\\' | '"')) => escaped,
                    other => panic!("{other:?} escaped in {line}"),
                }),
                Some(character) => text.push(character),
                None => panic!("a value without end: {line}"),
            }
        }
        assert!(labels.insert(label, text).is_none(), "{line}");
        match rest.next() {
            Some(',') => {}
            None => break,
            Some(other) => panic!("{other:?} in {line}"),
        }
    }
    (name.to_owned(), labels, value)
}

#[test]
fn a_page_is_read_and_a_broken_one_is_not() {
    let page = "# HELP a_total x\n# TYPE a_total counter\na_total{b=\"c\\\"\\\\,\",d=\"\"} 7\na_total 1\n";
    let read = Page::read(page);
    assert_eq!(read.sum("a_total", &[]), 8.0);
    assert_eq!(read.sum("a_total", &[("b", "c\"\\,")]), 7.0);
    for broken in [
        "a 1\n",
        "# HELP a x\n# TYPE a gauge\na{b=c} 1\n",
        "# HELP a x\n# TYPE a counter\na 1\n",
        "# HELP a x\n# TYPE a gauge\na 1\na 2\n",
        "# HELP a x\n# TYPE a gauge\nb 1\n",
        "# HELP a x\n# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n",
    ] {
        assert!(std::panic::catch_unwind(|| Page::read(broken)).is_err(), "{broken}");
    }
}
