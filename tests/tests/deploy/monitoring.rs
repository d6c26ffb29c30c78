//! Alerts and dashboard: every expression parsed as Prometheus parses it, every metric and label in them one that agents have.

use std::{collections::BTreeSet, convert::Infallible, fs};

use lb_agent::metrics::{FAMILIES, Kind};
use promql_parser::{
    parser::{Expr, LabelModifier, VectorSelector, parse},
    util::{ExprVisitor, walk_expr},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    chart,
    kustomize::{self, documents, kind},
    manifests::deploy,
};

/// Labels that Prometheus gives to whatever it scrapes.
const OF_TARGETS: [&str; 2] = ["instance", "job"];
/// Metrics that Prometheus makes itself.
const OF_PROMETHEUS: [&str; 1] = ["up"];
/// What Grafana puts in before it asks.
const VARIABLES: [(&str, &str); 1] = [("$__rate_interval", "5m")];

/// Labels of a metric, by the name of a series; `None` where there is none.
fn labels(series: &str) -> Option<BTreeSet<&'static str>> {
    let mut labels: BTreeSet<&str> = OF_TARGETS.into();
    if OF_PROMETHEUS.contains(&series) {
        return Some(labels);
    }
    let suffixes: &[&str] = &["", "_bucket", "_sum", "_count"];
    let (family, suffix) = FAMILIES.iter().find_map(|family| {
        let suffix = suffixes.iter().find(|suffix| series.strip_suffix(**suffix) == Some(family.name))?;
        ((family.kind == Kind::Histogram) != suffix.is_empty()).then_some((family, *suffix))
    })?;
    labels.extend(family.labels);
    if suffix == "_bucket" {
        labels.insert("le");
    }
    Some(labels)
}

/// The selectors below an expression, and what is wrong in it.
#[derive(Default)]
struct Visitor {
    selectors: Vec<VectorSelector>,
    aggregations: Vec<(Vec<String>, Expr)>,
}

impl ExprVisitor for Visitor {
    type Error = Infallible;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, Infallible> {
        match expression {
            Expr::VectorSelector(selector) => self.selectors.push(selector.clone()),
            Expr::MatrixSelector(selector) => self.selectors.push(selector.vs.clone()),
            Expr::Aggregate(aggregation) => {
                if let Some(LabelModifier::Include(labels) | LabelModifier::Exclude(labels)) =
                    &aggregation.modifier
                {
                    self.aggregations.push((labels.labels.clone(), (*aggregation.expr).clone()));
                }
            }
            _ => {}
        }
        Ok(true)
    }
}

fn visit(expression: &Expr) -> Visitor {
    let mut visitor = Visitor::default();
    let Ok(_) = walk_expr(&mut visitor, expression);
    visitor
}

/// Everything that is wrong with an expression, and the labels that all its series have.
fn check(text: &str) -> Result<BTreeSet<String>, String> {
    let mut plain = text.to_owned();
    for (variable, value) in VARIABLES {
        plain = plain.replace(variable, value);
    }
    let expression = parse(&plain).map_err(|error| format!("{text}: {error}"))?;
    let visitor = visit(&expression);
    let mut all: Option<BTreeSet<String>> = None;
    for selector in &visitor.selectors {
        let name = selector.name.as_deref().ok_or_else(|| format!("{text}: a selector without a name"))?;
        let known = labels(name).ok_or_else(|| format!("{text}: agents have no series {name}"))?;
        for matcher in &selector.matchers.matchers {
            if !known.contains(matcher.name.as_str()) {
                return Err(format!("{text}: {name} has no label {}", matcher.name));
            }
        }
        let known: BTreeSet<String> = known.into_iter().map(str::to_owned).collect();
        all = Some(all.map_or(known.clone(), |all| all.intersection(&known).cloned().collect()));
    }
    for (wanted, below) in &visitor.aggregations {
        for selector in visit(below).selectors {
            let name = selector.name.unwrap_or_default();
            let known = labels(&name).unwrap_or_default();
            if let Some(label) = wanted.iter().find(|label| !known.contains(label.as_str())) {
                return Err(format!("{text}: by {label}, which {name} has not"));
            }
        }
    }
    all.ok_or_else(|| format!("{text}: names no metric"))
}

/// A rule file, with nothing in it that Prometheus does not know.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    groups: Vec<Group>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    rules: Vec<Alert>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Alert {
    alert: String,
    expr: String,
    #[serde(default)]
    r#for: Option<String>,
    labels: Value,
    annotations: Value,
}

fn rules() -> RuleFile {
    let text = fs::read_to_string(deploy("monitoring/rules.yaml")).unwrap();
    serde_json::from_value(documents(&text).unwrap().remove(0)).unwrap()
}

#[test]
fn mistakes_in_expressions_are_found() {
    assert!(check("sum by (instance) (rate(lb_dropped_packets_total{reason=\"fragment\"}[5m])) > 1").is_ok());
    for (wrong, word) in [
        ("sum(rate(lb_dropped_packets_total[5m])", "unclosed"),
        ("rate(lb_dropped_packets[5m])", "no series lb_dropped_packets"),
        ("lb_event_to_kernel_seconds", "no series lb_event_to_kernel_seconds"),
        ("lb_services_late_count", "no series"),
        ("lb_devices{kind=\"pod\"}", "no label kind"),
        ("sum by (reason) (lb_devices)", "by reason"),
        ("rate(lb_devices)", "expected type"),
        ("1 + 1", "no metric"),
    ] {
        let error = check(wrong).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn alerts_parse_and_name_what_agents_have() {
    let rules = rules();
    let alerts: Vec<&Alert> = rules.groups.iter().flat_map(|group| &group.rules).collect();
    assert!(alerts.len() > 10);
    let mut names = BTreeSet::new();
    for alert in alerts {
        check(&alert.expr).unwrap_or_else(|error| panic!("{}: {error}", alert.alert));
        assert!(names.insert(&alert.alert), "{} twice", alert.alert);
        let severity = alert.labels["severity"].as_str().unwrap();
        assert!(["info", "warning", "critical"].contains(&severity), "{severity}");
        for field in ["summary", "description"] {
            assert!(alert.annotations[field].as_str().is_some_and(|text| text.len() > 10), "{}", alert.alert);
        }
        let wait = alert.r#for.as_deref().unwrap_or("0m");
        assert!(wait.strip_suffix(['m', 'h']).is_some_and(|number| number.parse::<u32>().is_ok()), "{wait}");
    }
}

#[test]
fn the_operators_rules_and_the_charts_are_those_of_the_file() {
    let kustomized = kustomize::build(&deploy("overlays/monitoring")).unwrap();
    let charted = chart::render(&deploy("helm/lb"), &json!({"monitoring": true})).unwrap();
    for objects in [kustomized, charted] {
        let of_kind = |wanted: &str| objects.iter().find(|object| kind(object) == wanted).unwrap();
        let spec = &of_kind("PrometheusRule")["spec"];
        assert_eq!(serde_json::from_value::<RuleFile>(spec.clone()).unwrap(), rules());
        // What is scraped is a port of the pods that are selected, and the agent listens there for others.
        let (monitor, pods) = (&of_kind("PodMonitor")["spec"], &of_kind("DaemonSet")["spec"]["template"]);
        let wanted = monitor["selector"]["matchLabels"].as_object().unwrap();
        assert!(wanted.iter().all(|(name, value)| pods["metadata"]["labels"][name] == *value));
        let port = pods["spec"]["containers"][0]["ports"].as_array().unwrap();
        let port =
            port.iter().find(|port| port["name"] == monitor["podMetricsEndpoints"][0]["port"]).unwrap();
        assert_eq!(port["containerPort"], lb_agent::options::METRICS_PORT);
        assert_eq!(of_kind("ConfigMap")["data"]["LB_AGENT_METRICS_BIND_ADDRESS"], "[::]");
    }
}

#[test]
fn the_dashboard_asks_for_what_agents_have() {
    let text = fs::read_to_string(deploy("monitoring/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut ids, mut asked) = (BTreeSet::new(), BTreeSet::new());
    let mut places: Vec<[u64; 4]> = Vec::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is another one's");
        let place = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        let [x, y, w, h] = place;
        let overlaps = |other: &&[u64; 4]| {
            x < other[0] + other[2] && other[0] < x + w && y < other[1] + other[3] && other[1] < y + h
        };
        assert!(x + w <= 24 && !places.iter().any(|other| overlaps(&other)), "{title} has no place");
        places.push(place);
        let targets = panel["targets"].as_array();
        assert_eq!(panel["type"] == "row", targets.is_none(), "{title}");
        for target in targets.into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let known = check(expression).unwrap_or_else(|error| panic!("{title}: {error}"));
            asked.insert(expression);
            // What a legend names is a label of what it is about.
            let legend = target["legendFormat"].as_str().unwrap();
            for part in legend.split("{{").skip(1) {
                let label = part.split("}}").next().unwrap();
                assert!(known.contains(label), "{title}: {label} of {expression}");
            }
            assert!(expression.contains("instance=~\"$node\""), "{title}: for all nodes");
        }
    }
    assert!(asked.len() > 25, "{}", asked.len());
    let variables: Vec<&str> = dashboard["templating"]["list"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|it| it["name"].as_str())
        .collect();
    assert_eq!(variables, ["datasource", "node"]);
    assert!(labels("lb_build_info").is_some(), "which the variable asks for");
}
