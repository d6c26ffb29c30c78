//! The API server and the EndpointSlice controller against what a real kube-apiserver 1.36 answered: the same requests on a
//! similar state, compared key by key and value by value. `tests/data/kube-captures/README.txt` says what was recorded.

#[path = "apiserver_captures/compare.rs"]
mod compare;

use std::{
    net::TcpListener,
    sync::Arc,
    time::{Duration, Instant},
};

use http_body_util::BodyExt;
use hyper::{HeaderMap, Request, header::ACCEPT};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use lb_tests::{
    apiserver::{ApiHandle, ApiServer, Options},
    controllers::{self, Controllers, FakeRuntime},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use compare::{capture, captured, events, same};

struct Cluster {
    server: ApiServer,
    client: Client,
    controllers: Option<Controllers>,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

impl Cluster {
    /// The three nodes of the captures, and the namespace.
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = ApiServer::start(listener, Options::default()).unwrap();
        let client = client(&server.kubeconfig(&server.url())).await;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "snackbar"}});
        server.api().create(&namespace).unwrap();
        for (name, zone) in [("node-1", "zone-a"), ("node-2", "zone-b"), ("node-3", "zone-a")] {
            let node = json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {
                    "name": name,
                    "labels": {
                        "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone,
                        "topology.kubernetes.io/region": "local",
                    },
                },
            });
            server.api().create(&node).unwrap();
        }
        Self { server, client, controllers: None }
    }

    fn with_controllers(mut self) -> Self {
        let runtime = Arc::new(FakeRuntime::new(0, true));
        let options = controllers::Options::default();
        self.controllers = Some(Controllers::start(self.server.api(), runtime, &options).unwrap());
        self
    }

    fn api(&self) -> &ApiHandle {
        self.server.api()
    }

    async fn get(&self, path: &str) -> Answer {
        get(&self.client, path, "application/json").await
    }

    fn yaml(&self, yaml: &str) {
        self.api().apply_yaml(yaml).unwrap();
    }

    /// A pod as the captures have them.
    fn pod(&self, service: &str, number: u8) {
        let node = format!("node-{}", number % 3 + 1);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("{service}-{number}"), "namespace": "snackbar",
                "labels": {"project": "snackbar", "service": service},
            },
            "spec": {
                "nodeName": node,
                "containers": [{
                    "name": "app", "image": "local/none", "ports": [{"name": "http", "containerPort": 8080}],
                }],
            },
        });
        self.api().create(&pod).unwrap();
    }

    /// The watch events since a version, of a watch that ends by itself.
    async fn events_since(&self, plural: &str, version: u64) -> Vec<Value> {
        let group = if plural == "services" { "api/v1" } else { "apis/discovery.k8s.io/v1" };
        let path = format!("/{group}/{plural}?watch=1&resourceVersion={version}&timeoutSeconds=1");
        events(&self.get(&path).await.text)
    }
}

async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    // Errors are what is looked at here.
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

async fn get(client: &Client, path: &str, accept: &str) -> Answer {
    let request = Request::get(path).header(ACCEPT, accept).body(Body::empty()).unwrap();
    let response = client.send(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    Answer { status: parts.status.as_u16(), headers: parts.headers, text }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// The Services every capture begins with.
const BASE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: order, namespace: snackbar}
spec: {selector: {project: snackbar, service: order}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: payment, namespace: snackbar}
spec: {selector: {project: snackbar, service: payment}, ports: [{port: 80, targetPort: 8080}]}
";

#[tokio::test]
async fn answers_to_the_same_requests() {
    let cluster = Cluster::start().await;
    cluster.yaml(BASE);
    let services = cluster.get("/api/v1/services").await.json();
    same("services", &captured("00-base.services.list.json"), &services);
    for (file, path, status) in [
        ("15-404.json", "/api/v1/namespaces/snackbar/services/none", 404),
        ("15-bad-resourceversion.json", "/api/v1/services?resourceVersion=abc", 400),
        ("15-too-large-rv.json", "/api/v1/services?resourceVersion=99999999", 504),
        ("15-api-discovery.k8s.io-v1.json", "/apis/discovery.k8s.io/v1", 200),
    ] {
        let answer = cluster.get(path).await;
        assert_eq!(answer.status, status, "{path}");
        same(file, &captured(file), &answer.json());
    }
    // What was built when and by which compiler differs; the keys do not.
    let (real, ours) = (captured("15-version.json"), cluster.get("/version").await.json());
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&real), keys(&ours));
    assert_eq!((&real["major"], &real["minor"]), (&ours["major"], &ours["minor"]));

    let first = cluster.get("/api/v1/services?limit=2").await.json();
    same("first page", &captured("15-page1.services.json"), &first);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = cluster.get(&format!("/api/v1/services?limit=2&continue={token}")).await.json();
    same("second page", &captured("15-page2.services.json"), &second);
    let list_version = |list: &Value| list["metadata"]["resourceVersion"].clone();
    assert_eq!(list_version(&first), list_version(&second));

    let wrong = cluster.server.kubeconfig(&cluster.server.url()).replace("lab-token", "wrong");
    let answer = get(&client(&wrong).await, "/api/v1/services", "application/json").await;
    assert_eq!(answer.status, 401);
    same("401", &captured("15-401.json"), &answer.json());
    let anonymous = wrong.replace("    token: wrong\n", "    username: ''\n");
    let answer = get(&client(&anonymous).await, "/api/v1/services", "application/json").await;
    assert_eq!(answer.status, 403);
    same("403", &captured("15-403.json"), &answer.json());
}

#[tokio::test]
async fn watches_of_the_same_kinds() {
    let cluster = Cluster::start().await;
    cluster.yaml(BASE);
    let version = cluster.api().resource_version();
    let compare_events = |file: &str, ours: &[Value]| {
        let real = events(&capture(file));
        same(file, &Value::Array(real), &Value::Array(ours.to_vec()));
    };
    let answer = cluster.get("/api/v1/services?watch=1&resourceVersion=0&timeoutSeconds=1").await;
    compare_events("15-watch-rv0.services.jsonl", &events(&answer.text));
    for line in capture("15-watch-response-headers-http1.txt").lines().skip(1).filter(|it| !it.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap();
        // There is no priority and fairness in the lab.
        if name.starts_with("X-Kubernetes-Pf-") {
            continue;
        }
        let ours = answer.headers.get(name).unwrap_or_else(|| panic!("no header {name}"));
        if !["Audit-Id", "Date"].contains(&name) {
            assert_eq!(ours, value, "{name}");
        }
    }

    let path = "/api/v1/services?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&\
                resourceVersionMatch=NotOlderThan&timeoutSeconds=1";
    let ours = events(&cluster.get(path).await.text);
    let real = events(&capture("17-restart.services.watchlist.sigterm-http1.jsonl"));
    // That Service had an annotation; and this watch ends with a bookmark more.
    let mut real: Vec<Value> = real;
    real[1]["object"]["metadata"].as_object_mut().unwrap().remove("annotations");
    same("streaming list", &Value::Array(real), &Value::Array(ours[..4].to_vec()));

    let path = format!(
        "/api/v1/services?watch=1&allowWatchBookmarks=true&timeoutSeconds=3&resourceVersion={version}"
    );
    let begun = Instant::now();
    let ours = events(&cluster.get(&path).await.text);
    assert!(begun.elapsed() >= Duration::from_millis(2900), "the watch ends at its timeout");
    let real = events(&capture("15-watch-timeout.services.jsonl"));
    same("bookmark before the end", &real[0], &ours[0]);
    let path = format!(
        "/apis/discovery.k8s.io/v1/endpointslices?watch=1&allowWatchBookmarks=true&timeoutSeconds=1&\
         resourceVersion={version}"
    );
    let ours = events(&cluster.get(&path).await.text);
    same("bookmark", &events(&capture("14-bookmarks.endpointslices.watch.jsonl"))[0], &ours[0]);

    let path = "/api/v1/services?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&\
                resourceVersion=99999999";
    compare_events("16-future.services.watchlist.jsonl", &events(&cluster.get(path).await.text));

    let token = cluster.get("/api/v1/services?limit=1").await.json()["metadata"]["continue"].clone();
    cluster.server.compact();
    let answer = cluster.get("/api/v1/services?watch=1&allowWatchBookmarks=true&resourceVersion=1").await;
    assert_eq!(answer.status, 200, "the error comes as an event");
    compare_events("16-gone.services.watch.jsonl", &events(&answer.text));
    for (file, path) in [
        (
            "16-gone.services.list-exact.json",
            "/api/v1/services?resourceVersion=1&resourceVersionMatch=Exact".to_owned(),
        ),
        (
            "16-gone.services.continue-expired.json",
            format!("/api/v1/services?limit=1&continue={}", token.as_str().unwrap()),
        ),
    ] {
        // The token is of the version the server is still at: let it be past.
        cluster.api().scale("default", "none", 1).unwrap_err();
        cluster.yaml("{apiVersion: v1, kind: Namespace, metadata: {name: more}}");
        cluster.yaml("{apiVersion: v1, kind: Namespace, metadata: {name: more, labels: {a: b}}}");
        cluster.server.compact();
        let answer = cluster.get(&path).await;
        assert_eq!(answer.status, 410, "{path}");
        same(file, &captured(file), &answer.json());
    }
}

/// Applies the steps and compares the watch events of Services with the recorded ones.
async fn replay(file: &str, steps: &[(&str, Value)]) {
    let cluster = Cluster::start().await;
    let version = cluster.api().resource_version();
    for (name, step) in steps {
        let namespace = if file.starts_with("13") { "kube-system" } else { "snackbar" };
        match step {
            Value::Object(step) if step.contains_key("patch") => {
                cluster.api().patch::<Service>(namespace, name, &step["patch"]).unwrap();
            }
            Value::Object(step) if step.contains_key("status") => {
                let status = json!({"status": {"loadBalancer": {"ingress": [step["status"]]}}});
                cluster.api().patch_status::<Service>(namespace, name, &status).unwrap();
            }
            spec => {
                let mut service = json!({
                    "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
                    "spec": spec,
                });
                if *name == "kube-dns" {
                    service["metadata"]["labels"] = json!({
                        "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true",
                        "kubernetes.io/name": "CoreDNS",
                    });
                    service["metadata"]["annotations"] =
                        json!({"prometheus.io/port": "9153", "prometheus.io/scrape": "true"});
                }
                if *name == "tah" {
                    service["metadata"]["annotations"] =
                        json!({"service.kubernetes.io/topology-mode": "Auto"});
                }
                cluster.api().create(&service).unwrap();
            }
        }
    }
    let ours = cluster.events_since("services", version).await;
    let real = events(&capture(file));
    for (position, (real, ours)) in real.iter().zip(&ours).enumerate() {
        same(&format!("{file}, event {position}"), real, ours);
    }
    assert_eq!(ours.len(), real.len(), "{file}");
}

/// A Service spec: the usual one with these fields.
fn order(more: &Value) -> Value {
    let mut spec = json!({
        "selector": {"project": "snackbar", "service": "order"},
        "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
    });
    for (key, value) in more.as_object().unwrap() {
        if value.is_null() {
            spec.as_object_mut().unwrap().remove(key);
        } else {
            spec[key] = value.clone();
        }
    }
    spec
}

#[tokio::test]
async fn services_are_completed_as_recorded() {
    let patch = |spec: &Value| json!({"patch": {"spec": spec}});
    replay(
        "07-dualstack.services.watch.jsonl",
        &[
            ("order", order(&json!({"ipFamilyPolicy": "PreferDualStack"}))),
            ("order6", order(&json!({"ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"}))),
            (
                "order64",
                order(&json!({"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack"})),
            ),
            ("order4", order(&json!({}))),
            ("order4", patch(&json!({"ipFamilyPolicy": "RequireDualStack"}))),
            ("order4", patch(&json!({"ipFamilyPolicy": "SingleStack"}))),
        ],
    )
    .await;
    replay(
        "08-headless.services.watch.jsonl",
        &[
            ("order", order(&json!({"clusterIP": "None"}))),
            ("order-early", order(&json!({"clusterIP": "None", "publishNotReadyAddresses": true}))),
            ("manual", json!({"clusterIP": "None", "ports": [{"port": 80}]})),
            ("db", json!({"clusterIP": "None", "selector": {"app": "db"}})),
        ],
    )
    .await;
    let to_cluster_ip = json!({
        "type": "ClusterIP", "externalName": null, "ports": [{"port": 80, "targetPort": 8080}],
        "selector": {"project": "snackbar", "service": "order"},
    });
    let to_external_name = json!({
        "type": "ExternalName", "externalName": "db2.example.com", "selector": null, "clusterIP": null,
        "clusterIPs": null,
    });
    replay(
        "09-externalname.services.watch.jsonl",
        &[
            ("ext", json!({"type": "ExternalName", "externalName": "db.example.com"})),
            ("ext", patch(&to_cluster_ip)),
            ("ext", patch(&to_external_name)),
        ],
    )
    .await;
    let balancer = |more: &Value| {
        let mut spec = order(more);
        spec["type"] = "LoadBalancer".into();
        spec
    };
    let local = json!({
        "externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["198.51.100.0/24", "192.0.2.0/25"],
    });
    let without_ports = json!({"allocateLoadBalancerNodePorts": false, "loadBalancerClass": "example.com/x"});
    replay(
        "11-nodeport-lb.services.watch.jsonl",
        &[
            ("np", order(&json!({"type": "NodePort"}))),
            ("np-local", order(&json!({"type": "NodePort", "externalTrafficPolicy": "Local"}))),
            ("lb", balancer(&json!({}))),
            ("lb", json!({"status": {"ip": "203.0.113.10"}})),
            ("lb", json!({"status": {"ip": "203.0.113.11", "ipMode": "Proxy"}})),
            ("lb", json!({"status": {"hostname": "lb.example.com"}})),
            ("lb-local", balancer(&local)),
            ("lb-local", json!({"status": {"ip": "203.0.113.20"}})),
            ("lb-nonp", balancer(&without_ports)),
            ("lb-nonp", json!({"status": {"ip": "203.0.113.21"}})),
            ("eip", order(&json!({"externalIPs": ["203.0.113.30", "203.0.113.31"]}))),
            ("np", patch(&json!({"type": "ClusterIP"}))),
        ],
    )
    .await;
    let sticky = json!({"clientIP": {"timeoutSeconds": 60}});
    replay(
        "12-policies.services.watch.jsonl",
        &[
            ("sticky", order(&json!({"sessionAffinity": "ClientIP"}))),
            ("sticky60", order(&json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": sticky}))),
            ("local", order(&json!({"internalTrafficPolicy": "Local"}))),
            ("td-prefersamezone", order(&json!({"trafficDistribution": "PreferSameZone"}))),
            ("td-prefersamenode", order(&json!({"trafficDistribution": "PreferSameNode"}))),
            ("td-preferclose", order(&json!({"trafficDistribution": "PreferClose"}))),
            ("tah", order(&json!({}))),
            ("sticky", patch(&json!({"sessionAffinity": "None"}))),
            ("td-prefersamezone", patch(&json!({"trafficDistribution": null}))),
        ],
    )
    .await;
    let dns = json!({
        "clusterIP": "10.96.0.10",
        "selector": {"k8s-app": "kube-dns"},
        "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53},
            {"name": "metrics", "port": 9153},
        ],
    });
    let sctp = json!({
        "selector": {"k8s-app": "kube-dns"}, "ports": [{"name": "s", "port": 3868, "protocol": "SCTP"}],
    });
    replay("13-dns.services.watch.jsonl", &[("kube-dns", dns), ("sctp", sctp)]).await;
}

/// Lists with the endpoints and items in an order of their own, and without generated names and addresses.
fn settled(mut list: Value) -> Value {
    let items = list["items"].as_array_mut().unwrap();
    for item in items.iter_mut() {
        if item["metadata"].get("generateName").is_some() {
            item["metadata"]["name"] = item["metadata"]["generateName"].clone();
        }
        for endpoint in item["endpoints"].as_array_mut().into_iter().flatten() {
            endpoint["addresses"] = json!(["an address"]);
        }
        if let Some(endpoints) = item["endpoints"].as_array_mut() {
            endpoints.sort_by_key(|endpoint| endpoint["targetRef"]["name"].to_string());
        }
    }
    items.sort_by_key(|item| format!("{}{}", item["metadata"]["name"], item["addressType"]));
    list
}

#[tokio::test]
async fn slices_pods_and_nodes_as_recorded() {
    let cluster = Cluster::start().await.with_controllers();
    cluster.yaml(BASE);
    for (service, count) in [("order", 3), ("payment", 2)] {
        (0..count).for_each(|number| cluster.pod(service, number));
    }
    let ready = || {
        let slices = cluster.api().values("endpointslices", Some("snackbar")).unwrap();
        let endpoints = slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
        endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true).count()
    };
    until("five ready endpoints", || ready() == 5).await;

    let ours = cluster.get("/apis/discovery.k8s.io/v1/endpointslices").await.json();
    same("slices", &settled(captured("00-base.endpointslices.list.json")), &settled(ours));
    // kube-proxy's own selection.
    let selector = "%21service.kubernetes.io/service-proxy-name%2C%21service.kubernetes.io/headless";
    let path = format!("/apis/discovery.k8s.io/v1/endpointslices?labelSelector={selector}");
    let ours = cluster.get(&path).await.json();
    let mut real = settled(captured("15-labelselector.endpointslices.json"));
    let mut ours = settled(ours);
    // By then the recorded Service had two endpoints.
    for list in [&mut real, &mut ours] {
        for slice in list["items"].as_array_mut().unwrap() {
            slice["endpoints"].as_array_mut().unwrap().truncate(1);
        }
    }
    same("slices kube-proxy wants", &real, &ours);

    let mut pods = (captured("00-base.pods.list.json"), cluster.get("/api/v1/pods").await.json());
    for list in [&mut pods.0, &mut pods.1] {
        for pod in list["items"].as_array_mut().unwrap() {
            // Addresses are of another lab.
            pod["status"]["podIP"] = "an address".into();
            pod["status"]["podIPs"] = json!([{"ip": "an address"}]);
            pod["status"].as_object_mut().unwrap().remove("hostIP");
        }
    }
    same("pods", &pods.0, &pods.1);

    let path = "/apis/discovery.k8s.io/v1/endpointslices?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&\
                resourceVersionMatch=NotOlderThan&timeoutSeconds=1";
    let accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let ours = events(&get(&cluster.client, path, accept).await.text);
    let mut real = events(&capture("15-watch-metadata-only.endpointslices.jsonl"));
    let mut ours = ours[..3].to_vec();
    for event in real.iter_mut().chain(&mut ours).filter(|event| event["type"] == "ADDED") {
        event["object"]["metadata"]["name"] = event["object"]["metadata"]["generateName"].clone();
        // As in lists: see ALLOWED.
        event["object"]["metadata"].as_object_mut().unwrap().remove("annotations");
    }
    same("metadata only", &Value::Array(real), &Value::Array(ours));

    // Termination: still serving, then gone.
    let version = cluster.api().resource_version();
    cluster.api().delete::<Pod>("snackbar", "order-0").unwrap();
    until("the endpoint is gone", || ready() == 4).await;
    let ours = cluster.events_since("endpointslices", version).await;
    let conditions = |event: &Value| event["object"]["endpoints"][0]["conditions"].clone();
    let real = events(&capture("03-terminating.endpointslices.watch.jsonl"));
    assert_eq!(conditions(&real[0]), json!({"ready": false, "serving": true, "terminating": true}));
    if ours.len() > 1 {
        assert_eq!(conditions(&ours[0]), conditions(&real[0]));
    }
    let last = ours.last().unwrap()["object"]["endpoints"].as_array().unwrap().len();
    assert_eq!(last, real[2]["object"]["endpoints"].as_array().unwrap().len());
}

#[tokio::test]
async fn slices_split_as_recorded() {
    let cluster = Cluster::start().await.with_controllers();
    cluster.yaml(BASE);
    let sizes = |slices: &[Arc<Value>]| {
        let own =
            slices.iter().filter(|it| it["metadata"]["labels"]["kubernetes.io/service-name"] == "order");
        let mut sizes: Vec<usize> = own.map(|it| it["endpoints"].as_array().map_or(0, Vec::len)).collect();
        sizes.sort_unstable();
        sizes
    };
    let ours = || sizes(&cluster.api().values("endpointslices", Some("snackbar")).unwrap());
    let recorded = |file: &str| {
        let items =
            captured(file)["items"].as_array().unwrap().iter().cloned().map(Arc::new).collect::<Vec<_>>();
        sizes(&items)
    };
    (0..95).for_each(|number| cluster.pod("order", number));
    until("one slice", || ours() == recorded("06-many-endpoints.endpointslices.list.json")).await;
    (95..130).for_each(|number| cluster.pod("order", number));
    until("two slices", || ours() == [30, 100]).await;
    for number in 20..130 {
        cluster.api().delete::<Pod>("snackbar", &format!("order-{number}")).unwrap();
    }
    until("one slice again", || ours() == recorded("06-many-endpoints.endpointslices.after.json")).await;
}
