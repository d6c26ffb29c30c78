//! The text format of Prometheus, version 0.0.4.

use std::fmt::{Display, Write};

use super::catalogue::{Family, Kind};
use super::histogram::Snapshot;

/// A text that is being written: family by family, the samples of a family together.
#[derive(Debug, Default)]
pub(super) struct Text(String);

/// Labels of a sample: name and value.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    /// Begins a family.
    pub(super) fn family(&mut self, family: &Family) -> Samples<'_> {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing into a string does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n", name = family.name);
        Samples { text: &mut self.0, name: family.name }
    }

    /// What was written.
    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// Writes the samples of one family.
#[derive(Debug)]
pub(super) struct Samples<'t> {
    text: &'t mut String,
    name: &'static str,
}

impl Samples<'_> {
    /// A number.
    pub(super) fn sample(&mut self, labels: Labels<'_>, value: impl Display) -> &mut Self {
        self.line("", labels, None, value);
        self
    }

    /// A histogram.
    pub(super) fn histogram(&mut self, labels: Labels<'_>, snapshot: &Snapshot) -> &mut Self {
        for (bound, count) in &snapshot.buckets {
            self.line("_bucket", labels, Some(&bound.to_string()), count);
        }
        self.line("_bucket", labels, Some("+Inf"), snapshot.count);
        self.line("_sum", labels, None, snapshot.sum);
        self.line("_count", labels, None, snapshot.count);
        self
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, bound: Option<&str>, value: impl Display) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        let bound = bound.map(|bound| ("le", bound));
        for (index, (name, value)) in labels.iter().copied().chain(bound).enumerate() {
            self.text.push_str(if index == 0 { "{" } else { "," });
            self.text.push_str(name);
            self.text.push_str("=\"");
            for character in value.chars() {
                match character {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    other => self.text.push(other),
                }
            }
            self.text.push('"');
        }
        if !labels.is_empty() || bound.is_some() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_labels_and_histograms_are_written_as_prometheus_reads_them() {
        let family = |name, kind| Family { name, kind, labels: &[], help: "a \\ b\nc" };
        let mut text = Text::default();
        text.family(&family("x_total", Kind::Counter))
            .sample(&[], 7)
            .sample(&[("a", "1\"\\\n"), ("b", "")], 1.5);
        let snapshot = Snapshot { buckets: vec![(0.25, 1), (1.0, 3)], count: 4, sum: 2.5 };
        text.family(&family("y_seconds", Kind::Histogram)).histogram(&[("f", "v")], &snapshot);
        let expected = "# HELP x_total a \\\\ b\\nc\n# TYPE x_total counter\nx_total 7\n\
                        x_total{a=\"1\\\"\\\\\\n\",b=\"\"} 1.5\n\
                        # HELP y_seconds a \\\\ b\\nc\n# TYPE y_seconds histogram\n\
                        y_seconds_bucket{f=\"v\",le=\"0.25\"} 1\ny_seconds_bucket{f=\"v\",le=\"1\"} 3\n\
                        y_seconds_bucket{f=\"v\",le=\"+Inf\"} 4\ny_seconds_sum{f=\"v\"} 2.5\ny_seconds_count{f=\"v\"} 4\n";
        assert_eq!(text.finish(), expected);
    }
}
