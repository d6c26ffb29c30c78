//! The controllers over HTTP, and a runtime that starts nothing. With `KUBEBUILDER_ASSETS` set, against a real API server.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
};
use lb_tests::{
    apiserver::{ApiHandle, ControlPlane, DeleteOptions, Options},
    controllers::{self, Controllers, FakeRuntime, service_env},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

struct Cluster {
    server: ControlPlane,
    runtime: Arc<FakeRuntime>,
    _controllers: Controllers,
}

impl Cluster {
    fn start(nodes: u8, slice_size: usize) -> Self {
        let server = ControlPlane::start(Options::default()).unwrap();
        let runtime = Arc::new(FakeRuntime::new(nodes, true));
        let options = controllers::Options { slice_size, ..controllers::Options::default() };
        let controllers = Controllers::start(server.api(), runtime.clone(), &options).unwrap();
        Self { server, runtime, _controllers: controllers }
    }

    fn api(&self) -> &ApiHandle {
        self.server.api()
    }

    fn pods(&self) -> Vec<Arc<Value>> {
        self.api().values("pods", Some("default")).unwrap()
    }

    /// The slices of a Service.
    fn slices(&self, service: &str) -> Vec<Arc<Value>> {
        let mut slices = self.api().values("endpointslices", Some("default")).unwrap();
        slices.retain(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == service);
        slices
    }

    /// All endpoints of a Service.
    fn endpoints(&self, service: &str) -> Vec<Value> {
        self.slices(service).iter().filter_map(|it| it["endpoints"].as_array().cloned()).flatten().collect()
    }

    /// How many endpoints of a Service have these conditions.
    fn count(&self, service: &str, ready: bool, serving: bool, terminating: bool) -> usize {
        let wanted = json!({"ready": ready, "serving": serving, "terminating": terminating});
        self.endpoints(service).iter().filter(|endpoint| endpoint["conditions"] == wanted).count()
    }
}

/// Waits until something holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(2)).await;
    }
}

fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{
                "name": "app", "image": "netexec", "ports": [{"name": "web", "containerPort": 8080}],
            }]},
        }},
    })
}

fn service(name: &str, spec: &Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        service["spec"][key] = value.clone();
    }
    service
}

#[tokio::test]
async fn deployments_scale_and_roll() {
    let cluster = Cluster::start(2, 100);
    cluster.api().create(&service("web", &json!({}))).unwrap();
    cluster.api().apply(&deployment("web", 2)).unwrap();
    until("two ready endpoints", || cluster.count("web", true, true, false) == 2).await;
    let pods = cluster.pods();
    assert!(pods.iter().all(|pod| pod["metadata"]["name"].as_str().unwrap().starts_with("web-")));
    let mut nodes: Vec<_> = pods.iter().map(|pod| pod["spec"]["nodeName"].as_str().unwrap()).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["n1", "n2"], "pods are spread over the nodes");

    for replicas in [0, 3, 5, 1] {
        cluster.api().scale("default", "web", replicas).unwrap();
        until("the wanted number of endpoints", || {
            let ready = cluster.count("web", true, true, false);
            ready == replicas as usize && cluster.endpoints("web").len() == ready
        })
        .await;
    }
    assert_eq!(cluster.slices("web").len(), 1);

    cluster.api().scale("default", "web", 3).unwrap();
    until("three pods", || cluster.count("web", true, true, false) == 3).await;
    let before: Vec<Value> = cluster.pods().iter().map(|pod| pod["metadata"]["uid"].clone()).collect();
    let mut changes = cluster.api().follow(&["endpointslices"]).unwrap();
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"restarted": "yes"}}}}});
    cluster.api().patch::<Deployment>("default", "web", &patch).unwrap();
    until("all pods replaced", || {
        let pods = cluster.pods();
        pods.len() == 3
            && pods.iter().all(|pod| !before.contains(&pod["metadata"]["uid"]))
            && cluster.count("web", true, true, false) == 3
    })
    .await;
    while let Some(change) = changes.try_next() {
        let ready = change.object["endpoints"].as_array().map_or(0, |endpoints| {
            endpoints.iter().filter(|endpoint| endpoint["conditions"]["ready"] == true).count()
        });
        if change.object["metadata"]["labels"]["kubernetes.io/service-name"] == "web" {
            assert!(ready >= 3, "a rolling update never goes below the wanted number: {}", change.object);
        }
    }
    until("the status is reported", || {
        let deployment = cluster.api().value("deployments", "default", "web").unwrap();
        deployment["status"]["readyReplicas"] == 3 && deployment["status"]["updatedReplicas"] == 3
    })
    .await;

    cluster.api().delete::<Deployment>("default", "web").unwrap();
    until("pods go with their Deployment", || cluster.pods().is_empty() && cluster.runtime.pods().is_empty())
        .await;
    assert_eq!(cluster.slices("web").len(), 1, "an empty slice stays");
    assert!(cluster.slices("web")[0]["endpoints"].is_null());
    cluster.api().delete::<Service>("default", "web").unwrap();
    until("slices go with their Service", || cluster.slices("web").is_empty()).await;
}

#[tokio::test]
async fn endpoints_have_the_conditions_of_their_pods() {
    let cluster = Cluster::start(1, 100);
    cluster.runtime.set_ready(false);
    cluster.api().create(&service("web", &json!({}))).unwrap();
    cluster.api().create(&service("early", &json!({"publishNotReadyAddresses": true}))).unwrap();
    cluster.api().apply(&deployment("web", 1)).unwrap();
    until("not ready yet", || cluster.count("web", false, false, false) == 1).await;
    until("published all the same", || cluster.count("early", true, false, false) == 1).await;
    cluster.runtime.set_ready(true);
    until("ready", || cluster.count("web", true, true, false) == 1).await;

    cluster.runtime.set_stopping(false);
    let name = cluster.pods()[0]["metadata"]["name"].as_str().unwrap().to_owned();
    cluster.api().delete::<Pod>("default", &name).unwrap();
    until("terminating, and replaced", || {
        cluster.count("web", false, true, true) == 1 && cluster.count("web", true, true, false) == 1
    })
    .await;
    cluster.runtime.set_stopping(true);
    until("gone", || cluster.endpoints("web").len() == 1).await;
    assert!(cluster.api().value("pods", "default", &name).is_err());

    // Removed at once, without grace: its runtime is told all the same.
    let name = cluster.pods()[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let now = DeleteOptions { grace_seconds: Some(0), uid: None };
    cluster.api().delete_with::<Pod>("default", &name, &now).unwrap();
    until("the runtime has another pod only", || {
        let running = cluster.runtime.pods();
        running.len() == 1 && !running.contains_key(&("default".to_owned(), name.clone()))
    })
    .await;
}

#[tokio::test]
async fn slices_split_and_shrink() {
    let cluster = Cluster::start(2, 4);
    cluster.api().create(&service("web", &json!({"ipFamilyPolicy": "PreferDualStack"}))).unwrap();
    cluster.api().apply(&deployment("web", 10)).unwrap();
    until("all endpoints of both families", || cluster.count("web", true, true, false) == 20).await;
    let mut sizes: Vec<(String, usize)> = cluster
        .slices("web")
        .iter()
        .map(|it| (it["addressType"].as_str().unwrap().to_owned(), it["endpoints"].as_array().unwrap().len()))
        .collect();
    sizes.sort();
    let expected: Vec<(String, usize)> =
        ["IPv4", "IPv6"].iter().flat_map(|it| [2, 4, 4].map(|size| ((*it).to_owned(), size))).collect();
    assert_eq!(sizes, expected);
    let patch = json!({"spec": {"ipFamilyPolicy": "SingleStack"}});
    cluster.api().patch::<Service>("default", "web", &patch).unwrap();
    until("slices of the family the Service has no more are gone", || {
        cluster.slices("web").iter().all(|slice| slice["addressType"] == "IPv4")
    })
    .await;
    cluster.api().scale("default", "web", 1).unwrap();
    until("one slice is left", || cluster.slices("web").len() == 1 && cluster.endpoints("web").len() == 1)
        .await;
}

#[tokio::test]
async fn named_ports_hints_and_hands_off() {
    let cluster = Cluster::start(2, 100);
    let named = json!({"ports": [{"name": "http", "port": 80, "targetPort": "web", "appProtocol": "http"}]});
    cluster.api().create(&service("named", &named)).unwrap();
    cluster.api().create(&service("zone", &json!({"trafficDistribution": "PreferSameZone"}))).unwrap();
    cluster.api().create(&service("close", &json!({"trafficDistribution": "PreferClose"}))).unwrap();
    cluster.api().create(&service("node", &json!({"trafficDistribution": "PreferSameNode"}))).unwrap();
    cluster.api().create(&service("headless", &json!({"clusterIP": "None"}))).unwrap();
    let mut selectorless = service("legacy", &json!({}));
    selectorless["spec"].as_object_mut().unwrap().remove("selector");
    cluster.api().create(&selectorless).unwrap();
    let by_hand = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "legacy-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "legacy"}},
        "addressType": "IPv4", "endpoints": [{"addresses": ["10.1.2.3"]}], "ports": [{"port": 9376}],
    });
    cluster.api().create(&by_hand).unwrap();
    cluster.api().apply(&deployment("web", 2)).unwrap();
    for service in ["named", "zone", "close", "node", "headless"] {
        until("endpoints of every Service", || cluster.count(service, true, true, false) == 2).await;
    }
    let expected = json!([{"name": "http", "protocol": "TCP", "port": 8080, "appProtocol": "http"}]);
    assert_eq!(cluster.slices("named")[0]["ports"], expected);
    for service in ["zone", "close", "node"] {
        for endpoint in cluster.endpoints(service) {
            assert_eq!(endpoint["hints"]["forZones"], json!([{"name": endpoint["zone"]}]), "{service}");
            let nodes = if service == "node" { json!([{"name": endpoint["nodeName"]}]) } else { Value::Null };
            assert_eq!(endpoint["hints"]["forNodes"], nodes, "{service}");
        }
    }
    let headless = &cluster.slices("headless")[0]["metadata"]["labels"];
    assert_eq!(headless["service.kubernetes.io/headless"], "");
    let legacy = cluster.slices("legacy");
    assert_eq!(legacy.len(), 1);
    assert_eq!(legacy[0]["metadata"]["generation"], 1, "slices made by hand are left alone");

    // A slice that someone spoils is put right.
    let name = cluster.slices("named")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    cluster
        .api()
        .patch_value("endpointslices", "default", &name, &json!({"endpoints": [{"addresses": ["10.9.9.9"]}]}))
        .unwrap();
    until("the slice is right again", || cluster.count("named", true, true, false) == 2).await;
    cluster.api().delete_value("endpointslices", "default", &name, &DeleteOptions::default()).unwrap();
    until("the slice is there again", || cluster.count("named", true, true, false) == 2).await;
}

#[tokio::test]
async fn pods_get_the_services_variables() {
    let cluster = Cluster::start(1, 100);
    let spec = json!({
        "clusterIP": "10.96.0.77",
        "ports": [{"name": "http-web", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}],
    });
    cluster.api().create(&service("my-web", &spec)).unwrap();
    cluster.api().create(&service("six", &json!({"clusterIP": "fd00:96::77"}))).unwrap();
    cluster.api().create(&service("headless", &json!({"clusterIP": "None"}))).unwrap();
    cluster.api().apply(&deployment("web", 1)).unwrap();
    until("a running pod", || cluster.runtime.pods().len() == 1).await;
    let pods = cluster.runtime.pods();
    let env = &pods.values().next().unwrap().env;
    let get = |name: &str| env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    for (name, value) in [
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
        ("MY_WEB_SERVICE_HOST", "10.96.0.77"),
        ("MY_WEB_SERVICE_PORT", "80"),
        ("MY_WEB_SERVICE_PORT_HTTP_WEB", "80"),
        ("MY_WEB_PORT", "tcp://10.96.0.77:80"),
        ("MY_WEB_PORT_80_TCP", "tcp://10.96.0.77:80"),
        ("MY_WEB_PORT_80_TCP_PROTO", "tcp"),
        ("MY_WEB_PORT_80_TCP_PORT", "80"),
        ("MY_WEB_PORT_80_TCP_ADDR", "10.96.0.77"),
        ("MY_WEB_PORT_53_UDP", "udp://10.96.0.77:53"),
        ("SIX_PORT", "tcp://[fd00:96::77]:80"),
    ] {
        assert_eq!(get(name), Some(value), "{name}");
    }
    assert_eq!(get("HEADLESS_SERVICE_HOST"), None);
    let without = service_env(cluster.api(), "default", false);
    assert!(without.iter().all(|(name, _)| name.starts_with("KUBERNETES_")), "{without:?}");
}

#[tokio::test]
async fn pods_go_where_they_ask_to() {
    let cluster = Cluster::start(3, 100);
    for number in 0..4 {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{number}"), "namespace": "default"},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": "n3"},
                "containers": [{"name": "a", "image": "netexec"}],
            },
        });
        cluster.api().create(&pod).unwrap();
    }
    until("all run", || cluster.runtime.pods().len() == 4).await;
    assert!(cluster.runtime.pods().values().all(|pod| pod.node == "n3"));
    until("all are reported", || {
        cluster.pods().iter().all(|pod| {
            pod["status"]["phase"] == "Running"
                && pod["status"]["podIPs"].as_array().is_some_and(|addresses| addresses.len() == 2)
        })
    })
    .await;
}
