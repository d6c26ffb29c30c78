//! `docs/metrics.md` and `docs/configuration.md`, held against what there is.

use std::collections::BTreeMap;

use lb_agent::config::{FIELDS, Meaning};
use lb_agent::metrics::{FAMILIES, Kind};

/// The cells of the rows whose first cell is a name in backticks.
fn rows(page: &str) -> BTreeMap<String, Vec<String>> {
    let path = format!("{}/../docs/{page}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned());
        let name = cells.next().unwrap().trim_matches('`').to_owned();
        assert!(rows.insert(name, cells.collect()).is_none(), "twice: {line}");
    }
    rows
}

#[test]
fn the_page_about_metrics_has_every_metric_with_type_labels_and_help() {
    let rows = rows("metrics.md");
    for family in FAMILIES {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels = family.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(" ");
        let expected = [kind, &labels, family.help];
        assert_eq!(
            rows.get(family.name).unwrap_or_else(|| panic!("{} is not there", family.name)),
            &expected
        );
    }
    assert_eq!(rows.len(), FAMILIES.len(), "{:?}", rows.keys());
}

#[test]
fn s_63_the_page_about_configuration_has_every_field_and_says_which_mean_nothing() {
    let rows = rows("configuration.md");
    for field in FIELDS {
        let row = rows.get(field.path).unwrap_or_else(|| panic!("{} is not there", field.path));
        match field.meaning {
            Meaning::Honoured => assert!(row[0] == "yes" && row[1].len() > 3, "{row:?}"),
            Meaning::None(about) => assert_eq!(row, &["no", about]),
        }
    }
    assert_eq!(rows.len(), FIELDS.len(), "{:?}", rows.keys());
}
