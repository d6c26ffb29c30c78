//! What the agent asks of the API server, held against what the manifests grant it.

use std::{collections::BTreeSet, fs, time::Duration};

use lb_tests::{
    apiserver::{ApiServer, Options},
    lab::{AgentOptions, Family, Lab},
};
use serde_json::{Value, json};

use crate::{
    kustomize::{self, kind},
    manifests::deploy,
};

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(15);

/// API group, resource, verb.
type Permission = (String, String, String);

/// The permission that a request takes, as Kubernetes derives it.
fn permission(request: &str) -> Permission {
    let (method, uri) = request.split_once(' ').unwrap();
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let mut parts = path.trim_matches('/').split('/');
    let group = match parts.next() {
        Some("api") => "",
        Some("apis") => parts.next().unwrap(),
        _ => panic!("{request} is for no resource"),
    };
    let _version = parts.next();
    let mut rest: Vec<&str> = parts.collect();
    if rest.len() > 2 && rest[0] == "namespaces" {
        rest.drain(..2);
    }
    let watch = query.split('&').any(|part| matches!(part, "watch=1" | "watch=true"));
    let verb = match (method, rest.len()) {
        ("GET", 1) if watch => "watch",
        ("GET", 1) => "list",
        ("GET", _) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", 1) => "deletecollection",
        ("DELETE", _) => "delete",
        _ => panic!("{request}: an unknown method"),
    };
    (group.to_owned(), rest[0].to_owned(), verb.to_owned())
}

fn granted(role: &Value) -> BTreeSet<Permission> {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned()).collect()
    };
    let mut granted = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                granted.extend(
                    texts(&rule["verbs"]).into_iter().map(|verb| (group.clone(), resource.clone(), verb)),
                );
            }
        }
    }
    granted
}

#[test]
fn requests_become_permissions() {
    for (request, group, resource, verb) in [
        ("GET /api/v1/services?limit=500", "", "services", "list"),
        ("GET /api/v1/nodes?fieldSelector=metadata.name%3Da&watch=true", "", "nodes", "watch"),
        ("GET /api/v1/nodes/a", "", "nodes", "get"),
        ("POST /apis/events.k8s.io/v1/namespaces/x/events?", "events.k8s.io", "events", "create"),
        ("PATCH /apis/events.k8s.io/v1/namespaces/x/events/y", "events.k8s.io", "events", "patch"),
    ] {
        assert_eq!(
            permission(request),
            (group.to_owned(), resource.to_owned(), verb.to_owned()),
            "{request}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_asks_for_what_it_is_granted_and_is_granted_only_that() {
    let lab = Lab::builder().nodes(1).family(Family::V4).build().unwrap();
    let node = lab.node(0);
    let listener = node.namespace().tcp_listener("127.0.0.1:0".parse().unwrap()).unwrap();
    let server = ApiServer::start(listener, Options::default()).unwrap();
    server
        .api()
        .create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name()}}))
        .unwrap();
    // Two Services with one external IP: a reason to tell of something.
    for name in ["one", "other"] {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
            "spec": {"externalIPs": ["192.0.2.1"], "ports": [{"port": 80}]},
        });
        server.api().create(&service).unwrap();
    }
    let kubeconfig = lab.state_dir().join("rbac.kubeconfig");
    fs::write(&kubeconfig, server.kubeconfig(&server.url())).unwrap();
    let options = AgentOptions::new([
        "run".to_owned(),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--node-name={}", node.name()),
        format!("--bpf-root={}", node.bpffs().join("rbac").display()),
    ]);
    let mut agent = node.start_agent(options).unwrap();
    agent.wait_ready().await.unwrap();

    // Once more with a server that knows no streaming lists, so that both ways to learn of objects are taken.
    server.set_streaming_lists(false);
    agent.restart().unwrap();
    agent.wait_ready().await.unwrap();

    let objects = kustomize::build(&deploy("base")).unwrap();
    let granted = granted(objects.iter().find(|object| kind(object) == "ClusterRole").unwrap());
    let is_event = |permission: &Permission| permission.1 == "events";
    let wanted: BTreeSet<_> = granted.iter().filter(|it| !is_event(it)).cloned().collect();
    let begin = std::time::Instant::now();
    let used = loop {
        let used: BTreeSet<Permission> =
            server.requests().iter().map(|request| permission(request)).collect();
        if used.is_superset(&wanted) || begin.elapsed() > LIMIT {
            break used;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let refused: Vec<_> = used.difference(&granted).collect();
    assert!(
        refused.is_empty(),
        "the agent asks for what the manifests do not grant: {refused:?}\n{}",
        agent.log()
    );
    let idle: Vec<_> = wanted.difference(&used).collect();
    assert!(idle.is_empty(), "granted, and never asked for: {idle:?}");
    assert!(agent.sigterm().await.unwrap().success());
}
