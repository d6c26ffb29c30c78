//! What the suite lists, and what it wrote down of every finished run.

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// A finished run of a title.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Run {
    /// The upstream file.
    pub(super) file: String,
    /// The suite.
    pub(super) suite: String,
    /// The title.
    pub(super) title: String,
    /// Variant and family.
    pub(super) place: String,
    pub(super) passed: bool,
    pub(super) seconds: f64,
    /// The longest time until a change was visible, in milliseconds.
    pub(super) visible_ms: Option<f64>,
    pub(super) error: Option<String>,
}

/// The names in the output of `--list --format terse`, in order.
pub(super) fn listed(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| Some(line.strip_suffix(": test")?.to_owned())).collect()
}

/// The runs in a record.
pub(super) fn read(text: &str) -> Result<Vec<Run>> {
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("a line of the record: {line}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_and_colons_are_listed() {
        let text = "Networking should function for pod-Service: http {routed, stack}: test\nnoise\n\n";
        assert_eq!(listed(text), ["Networking should function for pod-Service: http {routed, stack}"]);
    }

    #[test]
    fn runs_are_read() {
        let text = r#"{"file":"f","suite":"S","title":"t","place":"p","passed":true,"seconds":0.5,"visible_ms":3.25}
{"file":"f","suite":"S","title":"t","place":"q","passed":false,"seconds":1,"error":"refused"}
"#;
        let runs = read(text).unwrap();
        assert_eq!((runs[0].passed, runs[0].visible_ms, runs[0].error.as_deref()), (true, Some(3.25), None));
        assert_eq!(
            (runs[1].passed, runs[1].visible_ms, runs[1].error.as_deref()),
            (false, None, Some("refused"))
        );
        assert!(read("{").is_err());
    }
}
