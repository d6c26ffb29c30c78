//! Metrics against the traffic they are of.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use lb_agent::metrics::{FAMILIES, Kind};
use lb_tests::{
    lab::{Caller, Family},
    workload::NetError,
};
use serde_json::json;

use crate::{Page, builder, page, service, until};

/// Every metric is there, with its type and labels, and no other.
fn is_complete(page: &Page) {
    let there: BTreeSet<&str> = page.kinds.keys().map(String::as_str).collect();
    let listed: BTreeSet<&str> = FAMILIES.iter().map(|family| family.name).collect();
    assert_eq!(there, listed);
    for family in FAMILIES {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        assert_eq!(page.kinds[family.name], kind, "{}", family.name);
        let labels: BTreeSet<&str> = family.labels.iter().copied().collect();
        assert_eq!(page.label_names(family.name), labels, "{}", family.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_62_metrics_are_of_the_traffic_that_there_was() {
    let cluster = builder(Family::Dual).agent_args(["--metrics-detail=endpoints"]).start().await.unwrap();
    let node = cluster.node(0).clone();
    cluster.api().create(&service("web", "web")).unwrap();
    cluster.api().create(&service("empty", "nobody")).unwrap();
    for number in 0..2 {
        let name = format!("web-{number}");
        cluster.netexec_pod("default", &name, &node, &json!({"app": "web"})).await.unwrap();
    }
    let client = cluster.netexec_pod("default", "client", &node, &json!({})).await.unwrap();
    cluster.settle("default").await.unwrap();
    let caller = Caller::at("client", client.pod().unwrap());
    let (web, empty) =
        (cluster.cluster_ips("default", "web").unwrap(), cluster.cluster_ip("default", "empty").unwrap());
    for address in &web {
        let requests = if address.is_ipv4() { 7 } else { 3 };
        for _ in 0..requests {
            caller.hostname(SocketAddr::new(*address, 80)).await.unwrap();
        }
    }
    for _ in 0..4 {
        let refused = caller.connect(SocketAddr::new(empty, 80)).await;
        assert_eq!(refused.map(|_| ()), Err(NetError::Refused));
    }
    let unknown = caller.connect(SocketAddr::new(web[0], 81)).await;
    assert_eq!(unknown.map(|_| ()), Err(NetError::Refused));
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(caller.http_flow(SocketAddr::new(web[0], 80)).await.unwrap());
    }

    let of_web = [("namespace", "default"), ("service", "web"), ("port", "http"), ("protocol", "TCP")];
    let family = |name| [&of_web[..], &[("ip_family", name)]].concat();
    until("a sweep that saw the open connections", async || {
        page(&node).await.sum("lb_service_active_connections", &family("IPv4")) >= 5.0
    })
    .await;
    let page = page(&node).await;
    is_complete(&page);
    for (name, connections) in [("IPv4", 12.0), ("IPv6", 3.0)] {
        let labels = family(name);
        assert_eq!(page.sum("lb_service_connections_total", &labels), connections, "{name}");
        assert_eq!(page.sum("lb_endpoint_connections_total", &labels), connections, "{name}");
        assert_eq!(page.sum("lb_service_endpoints", &labels), 2.0, "{name}");
        assert_eq!(page.sum("lb_service_handshakes_total", &labels), connections, "{name}");
        let seconds = page.sum("lb_service_handshake_seconds_total", &labels);
        assert!(seconds > 0.0 && seconds < connections, "{name}: {seconds}");
        for direction in ["request", "reply"] {
            let labels = [&labels[..], &[("direction", direction)]].concat();
            let packets = page.sum("lb_service_packets_total", &labels);
            // At least a handshake each, and no header is shorter than 40 bytes.
            assert!(packets >= 2.0 * connections, "{name} {direction}: {packets}");
            assert!(page.sum("lb_service_bytes_total", &labels) >= 40.0 * packets);
            assert_eq!(page.sum("lb_endpoint_packets_total", &labels), packets);
            assert_eq!(
                page.sum("lb_endpoint_bytes_total", &labels),
                page.sum("lb_service_bytes_total", &labels)
            );
        }
    }
    let endpoints =
        page.all("lb_endpoint_connections_total").filter(|(labels, _)| labels["service"] == "web");
    assert_eq!(endpoints.count(), 4, "two endpoints in two families");
    assert_eq!(page.sum("lb_handshake_duration_seconds_count", &[]), 15.0);
    assert_eq!(page.sum("lb_service_refused_packets_total", &[("service", "empty")]), 4.0);
    assert_eq!(page.sum("lb_service_refused_packets_total", &[("service", "web")]), 0.0);
    assert_eq!(page.sum("lb_dropped_packets_total", &[("reason", "no_endpoint")]), 4.0);
    assert_eq!(page.sum("lb_dropped_packets_total", &[("reason", "unknown_port")]), 1.0);
    assert!(page.sum("lb_connections", &[("state", "ESTABLISHED")]) >= 5.0, "{:?}", page.kinds);
    assert!(page.sum("lb_table_entries", &[("table", "connections4")]) >= 10.0);
    assert_eq!(page.sum("lb_table_max_entries", &[("table", "connections4")]), 65_536.0);
    assert_eq!(page.sum("lb_table_max_entries", &[("table", "services")]), 1024.0);
    // The Services of the test in both families, and `kubernetes` of the API server.
    assert!(page.sum("lb_services", &[("ip_family", "IPv6")]) >= 2.0);
    assert_eq!(page.sum("lb_devices", &[("role", "pod")]), 3.0);
    assert!(page.sum("lb_devices", &[("role", "net")]) >= 1.0);
    drop(open);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_62_metrics_are_of_the_changes_that_there_were() {
    let mut cluster = builder(Family::V4).start().await.unwrap();
    let node = cluster.node(0).clone();
    // Times of pods' conditions are whole seconds; what may be older than the agent is not counted.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let before = page(&node).await;
    let count = |page: &Page, name: &str, labels: &[(&str, &str)]| page.sum(name, labels);
    assert_eq!(
        count(&before, "kubeproxy_sync_full_proxy_rules_duration_seconds_count", &[("ip_family", "IPv4")]),
        1.0
    );
    cluster.api().create(&service("web", "web")).unwrap();
    cluster.netexec_pod("default", "web-0", &node, &json!({"app": "web"})).await.unwrap();
    cluster.settle("default").await.unwrap();
    let family = [("ip_family", "IPv4")];
    // The tables settle a moment before the change that settled them is counted.
    let programmed = "kubeproxy_network_programming_duration_seconds_count";
    until("the change is counted", async || {
        count(&page(&node).await, programmed, &family) > count(&before, programmed, &family)
    })
    .await;
    let after = page(&node).await;
    is_complete_but_for_endpoints(&after);
    for name in [
        "kubeproxy_sync_proxy_rules_duration_seconds_count",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count",
        programmed,
    ] {
        assert!(count(&after, name, &family) > count(&before, name, &family), "{name}");
    }
    for name in [
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "lb_event_to_kernel_seconds_count",
        "lb_planning_duration_seconds_count",
    ] {
        assert!(count(&after, name, &[]) > count(&before, name, &[]), "{name}");
    }
    for name in ["service", "endpoint"] {
        let name = format!("kubeproxy_sync_proxy_rules_{name}_changes_pending");
        assert_eq!(count(&after, &name, &[]), 0.0, "{name}");
    }
    assert_eq!(count(&after, "lb_apply_failures_total", &[]) + count(&after, "lb_services_late", &[]), 0.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    for name in ["last_timestamp", "last_queued_timestamp"] {
        let name = format!("kubeproxy_sync_proxy_rules_{name}_seconds");
        let at = count(&after, &name, &family);
        assert!((now - 60.0..=now + 1.0).contains(&at), "{name} {at}, and it is {now}");
    }
    assert!((now - 120.0..=now + 1.0).contains(&count(&after, "process_start_time_seconds", &[])));

    // Local policy, and the only endpoint on this node goes.
    let local = json!({"spec": {"internalTrafficPolicy": "Local"}});
    cluster.api().patch_value("services", "default", "web", &local).unwrap();
    let policy = [("ip_family", "IPv4"), ("traffic_policy", "internal")];
    let no_local = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    assert_eq!(count(&after, no_local, &policy), 0.0);
    let elsewhere = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "away", "namespace": "default", "labels": {"kubernetes.io/service-name": "away"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["192.0.2.9"], "nodeName": "another", "conditions": {"ready": true}}],
    });
    let mut away = service("away", "x");
    away["spec"]["selector"] = json!(null);
    away["spec"]["internalTrafficPolicy"] = "Local".into();
    cluster.api().create(&away).unwrap();
    cluster.api().create(&elsewhere).unwrap();
    until("a Service without local endpoints", async || count(&page(&node).await, no_local, &policy) == 1.0)
        .await;

    // Somebody takes programs away.
    let links = cluster.bpf_root(&node).join("links");
    let pin = std::fs::read_dir(&links).unwrap().next().unwrap().unwrap().path();
    let output = Command::new("bpftool").args(["link", "detach", "pinned"]).arg(&pin).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    until("the repair is counted", async || {
        count(&page(&node).await, "lb_program_repairs_total", &[]) >= 1.0
    })
    .await;
    assert_eq!(cluster.agent(0).exit_status(), None);
}

fn is_complete_but_for_endpoints(page: &Page) {
    assert_eq!(page.all("lb_endpoint_connections_total").count(), 0, "only with --metrics-detail=endpoints");
    assert!(page.all("lb_service_connections_total").count() > 0);
    assert_eq!(page.kinds.len(), FAMILIES.len());
}

/// Series of a Service port.
const SERIES: usize = 13;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_62_series_are_bounded_and_can_be_switched_off() {
    let most = 10 * SERIES + 4;
    let mut cluster = builder(Family::V4)
        .agent_args(["--metrics-detail=endpoints".to_owned(), format!("--metrics-max-series={most}")])
        .without_agents()
        .start()
        .await
        .unwrap();
    const SERVICES: usize = 500;
    for number in 0..SERVICES {
        cluster.api().create(&service(&format!("s{number}"), "nobody")).unwrap();
    }
    cluster.start_agents().unwrap();
    cluster.agents_ready().await.unwrap();
    let node = cluster.node(0).clone();
    let begin = Instant::now();
    let bounded = page(&node).await;
    let took = begin.elapsed();
    let told: usize = FAMILIES
        .iter()
        .filter(|family| family.name.starts_with("lb_service_") || family.name.starts_with("lb_endpoint_"))
        .map(|family| bounded.all(family.name).count())
        .sum();
    assert_eq!(told, 10 * SERIES);
    let services = bounded.sum("lb_services", &[]);
    assert!(services >= SERVICES as f64, "{services}");
    assert_eq!(bounded.sum("lb_metrics_omitted", &[("what", "services")]), services - 10.0);
    println!("{services} Service ports, {told} series of them, scraped in {took:.1?}");
    // The same ones the next time.
    let names = |page: &Page| {
        page.all("lb_service_connections_total").map(|(labels, _)| labels.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&bounded), names(&page(&node).await));

    cluster.agent(0).sigterm().await.unwrap();
    let mut options = cluster.agent_options(&node).unwrap();
    options.args.retain(|argument| !argument.starts_with("--metrics-"));
    options.args.push("--metrics-detail=none".to_owned());
    let without = node.start_agent(options).unwrap();
    without.wait_ready().await.unwrap();
    let page = page(&node).await;
    assert_eq!(page.kinds.len(), FAMILIES.len());
    for family in FAMILIES.iter().filter(|family| family.labels.contains(&"service")) {
        assert_eq!(page.all(family.name).count(), 0, "{}", family.name);
    }
    assert!(page.all("lb_dropped_packets_total").count() > 10);
    assert_eq!(page.sum("lb_metrics_omitted", &[]), 0.0);
}
