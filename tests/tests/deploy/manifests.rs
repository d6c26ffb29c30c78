//! Manifests and chart: rendered, valid, and the same as each other.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::Command,
};

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    chart,
    kustomize::{self, documents, kind},
    schema::Schema,
};

/// The chart adds it to pods, to replace them when their settings change.
const SETTINGS: &str = "/spec/template/metadata/annotations";

/// Kustomization, the name of its expected file, and the chart's values that give the same.
fn variants() -> [(&'static str, &'static str, Option<Value>); 5] {
    [
        ("base", "base", Some(json!({}))),
        (
            "overlays/replace-kube-proxy",
            "replace-kube-proxy",
            Some(json!({"server": "https://control-plane.example:6443"})),
        ),
        (
            "overlays/kind",
            "kind",
            Some(json!({"server": "https://kind-control-plane:6443", "privileged": true})),
        ),
        (
            "overlays/monitoring",
            "monitoring",
            Some(json!({"server": "https://control-plane.example:6443", "monitoring": true})),
        ),
        ("cleanup", "cleanup", None),
    ]
}

pub(crate) fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy").join(path)
}

fn expected(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("data/deploy/{name}.yaml"));
    documents(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Objects in an order of their own, so that two lists can be compared.
fn sorted(objects: Vec<Value>) -> BTreeMap<String, Value> {
    objects
        .into_iter()
        .map(|object| (format!("{}/{}", kind(&object), object["metadata"]["name"]), object))
        .collect()
}

#[track_caller]
fn assert_same(found: Vec<Value>, wanted: Vec<Value>, what: &str) {
    let (found, wanted) = (sorted(found), sorted(wanted));
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{what}");
    for (name, object) in &found {
        let text = |value: &Value| serde_json::to_string_pretty(value).unwrap();
        assert!(*object == wanted[name], "{what}: {name} is\n{}\nnot\n{}", text(object), text(&wanted[name]));
    }
}

/// Everything that is rendered, with where it comes from.
fn everything() -> Vec<(String, Vec<Value>)> {
    let mut all = Vec::new();
    for (directory, _, values) in variants() {
        all.push((directory.to_owned(), kustomize::build(&deploy(directory)).unwrap()));
        if let Some(values) = values {
            all.push((format!("chart with {values}"), chart::render(&deploy("helm/lb"), &values).unwrap()));
        }
    }
    all
}

#[test]
fn kustomizations_render_as_expected() {
    for (directory, name, _) in variants() {
        assert_same(kustomize::build(&deploy(directory)).unwrap(), expected(name), directory);
    }
}

#[test]
fn the_chart_renders_what_the_kustomizations_do() {
    for (_, name, values) in variants() {
        let Some(values) = values else { continue };
        let mut objects = chart::render(&deploy("helm/lb"), &values).unwrap();
        let pods = objects.iter_mut().find(|object| kind(object) == "DaemonSet").unwrap();
        let annotations = pods.pointer_mut(SETTINGS).unwrap().take();
        assert_eq!(annotations["lb-agent/settings"].as_str().unwrap().len(), 64, "{annotations}");
        pods.pointer_mut("/spec/template/metadata").unwrap().as_object_mut().unwrap().remove("annotations");
        assert_same(objects, expected(name), &format!("chart with {values}"));
    }
}

#[test]
fn changed_settings_replace_the_charts_pods_and_other_values_reach_their_places() {
    let pods = |values: Value| {
        let objects = chart::render(&deploy("helm/lb"), &values).unwrap();
        assert!(objects.iter().flat_map(|object| Schema::load().unwrap().problems(object)).next().is_none());
        objects.into_iter().find(|object| kind(object) == "DaemonSet").unwrap()
    };
    let usual = pods(json!({}));
    for values in [json!({"server": "https://x"}), json!({"settings": {"LB_AGENT_LOG": "debug"}})] {
        assert_ne!(pods(values).pointer(SETTINGS), usual.pointer(SETTINGS));
    }
    let pods = pods(json!({
        "image": {"repository": "registry.example/lb-agent", "tag": "9"},
        "imagePullSecrets": [{"name": "secret"}],
        "cgroupPath": "/sys/fs/cgroup/unified",
        "resources": {"limits": {"memory": "1Gi"}},
        "maxUnavailable": 1,
        "nodeSelector": {"a": "b"},
        "tolerations": [],
    }));
    let pod = &pods["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["image"], "registry.example/lb-agent:9");
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "secret"}]));
    assert_eq!(pod["volumes"][1]["hostPath"]["path"], "/sys/fs/cgroup/unified");
    // Merged with the default, as Helm does.
    assert_eq!(
        pod["containers"][0]["resources"],
        json!({"limits": {"memory": "1Gi"}, "requests": {"cpu": "50m", "memory": "192Mi"}})
    );
    assert_eq!(pods["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], 1);
    assert_eq!(pod["nodeSelector"], json!({"a": "b", "kubernetes.io/os": "linux"}));
    assert_eq!(pod["tolerations"], json!([]));
}

#[test]
fn every_object_is_valid_by_kubernetes_own_schema() {
    let schema = Schema::load().unwrap();
    let mut count = 0;
    for (from, objects) in everything() {
        // Kinds of Prometheus' operator are no part of Kubernetes; `monitoring` sees to them.
        for object in objects.into_iter().filter(|it| it["apiVersion"] != "monitoring.coreos.com/v1") {
            assert_eq!(schema.problems(&object), Vec::<String>::new(), "{from}");
            round_trip(&object);
            count += 1;
        }
    }
    // Five objects in four kustomizations and four times in the chart, and one for the clean-up.
    assert_eq!(count, 2 * 4 * 5 + 1);
}

/// Through the typed structures and back: what they do not know would be lost.
fn round_trip(object: &Value) {
    fn through<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
        let typed: T = serde_json::from_value(object.clone()).unwrap();
        serde_json::to_value(typed).unwrap()
    }
    let back = match kind(object) {
        "DaemonSet" => through::<DaemonSet>(object),
        "ConfigMap" => through::<ConfigMap>(object),
        "ServiceAccount" => through::<ServiceAccount>(object),
        "ClusterRole" => through::<ClusterRole>(object),
        "ClusterRoleBinding" => through::<ClusterRoleBinding>(object),
        other => panic!("unexpected kind {other}"),
    };
    assert_eq!(back, *object);
}

/// The validation is worth something only if it finds what is wrong.
#[test]
fn the_schema_finds_mistakes() {
    let schema = Schema::load().unwrap();
    let good =
        kustomize::build(&deploy("base")).unwrap().into_iter().find(|it| kind(it) == "DaemonSet").unwrap();
    let container = "/spec/template/spec/containers/0";
    for (place, value, complaint) in [
        ("", json!({"imagePullPolice": "Always"}), "unknown field imagePullPolice"),
        ("", json!({"args": "run"}), "is not type"),
        ("", json!({"name": null}), "type"),
        ("/securityContext", json!({"runAsUser": "root"}), "is not type"),
        ("/securityContext/capabilities", json!({"ad": ["BPF"]}), "unknown field ad"),
        ("/readinessProbe", json!({"periodSeconds": 5_000_000_000_u64}), "is not format"),
        ("/resources/requests", json!({"cpu": ["1"]}), "is not oneOf"),
    ] {
        let mut bad = good.clone();
        let target = bad.pointer_mut(&format!("{container}{place}")).unwrap().as_object_mut().unwrap();
        target.extend(value.as_object().unwrap().clone());
        let problems = schema.problems(&bad);
        let found = problems.iter().any(|problem| problem.contains(complaint));
        assert!(found || (complaint == "type" && !problems.is_empty()), "{value}: {problems:?}");
    }
    let mut bad = good;
    bad["spec"].as_object_mut().unwrap().remove("selector");
    assert_eq!(schema.problems(&bad), ["apps/v1/DaemonSet.spec: lacks \"selector\""]);
}

/// The real tools, where they are installed (or named in `LB_KUSTOMIZE`, `LB_HELM`), render the same.
#[test]
fn the_real_kustomize_and_helm_agree_where_they_are_installed() {
    let run = |variable: &str, name: &str, arguments: &[String]| {
        let program = env::var(variable).unwrap_or_else(|_| name.to_owned());
        let output = Command::new(&program).args(arguments).output().ok()?;
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Some(documents(&String::from_utf8(output.stdout).unwrap()).unwrap())
    };
    for (directory, name, values) in variants() {
        let path = deploy(directory).display().to_string();
        if let Some(objects) = run("LB_KUSTOMIZE", "kustomize", &["build".into(), path]) {
            assert_same(objects, expected(name), "kustomize");
        }
        let Some(values) = values else { continue };
        let mut arguments = vec!["template".to_owned(), "lb".into(), deploy("helm/lb").display().to_string()];
        arguments.extend(["--namespace".into(), "kube-system".into()]);
        for (name, value) in values.as_object().unwrap() {
            arguments.extend(["--set-json".into(), format!("{name}={value}")]);
        }
        if let Some(mut objects) = run("LB_HELM", "helm", &arguments) {
            let pods = objects.iter_mut().find(|object| kind(object) == "DaemonSet").unwrap();
            pods.pointer_mut("/spec/template/metadata")
                .unwrap()
                .as_object_mut()
                .unwrap()
                .remove("annotations");
            assert_same(objects, expected(name), "helm");
        }
    }
}
