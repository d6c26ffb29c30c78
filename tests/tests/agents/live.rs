//! `watch` and `top`: what they tell of traffic while there is some.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_tests::{
    cluster::{Cluster, Forwarding},
    lab::{Caller, Family, KubePod, Shape},
    workload::NetError,
};
use serde_json::{Value, json};

use crate::common::{SECONDS, service, simple};

/// What a command prints in so many seconds while something else goes on.
async fn beside(cluster: &Cluster, args: &[&str], traffic: impl Future<Output = ()>) -> (Vec<Value>, String) {
    let node = cluster.node(0).clone();
    let root = format!("--bpf-root={}", cluster.bpf_root(&node).display());
    let args = [args, &["-o", "json", &root]].concat();
    let begun = async {
        // It asks for events within a few milliseconds; a process start under load takes longer.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        traffic.await;
    };
    let (output, ()) = tokio::join!(node.agent_command(&args, SECONDS), begun);
    let output = output.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {said}");
    let lines = String::from_utf8(output.stdout).unwrap();
    (lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), said)
}

async fn client(cluster: &Cluster) -> (KubePod, IpAddr) {
    let client = cluster.netexec_pod("default", "client", cluster.node(0), &json!({})).await.unwrap();
    cluster.api().create(&service("empty", json!({"app": "nobody"}))).unwrap();
    cluster.settle("default").await.unwrap();
    (client, cluster.cluster_ip("default", "empty").unwrap())
}

fn count(events: &[Value], what: &[(&str, &str)]) -> usize {
    events.iter().filter(|event| what.iter().all(|(field, value)| event[field] == *value)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_tells_of_connections_from_their_beginning_to_their_end_and_of_drops() {
    for (family, forwarding) in [(Family::V4, Forwarding::Stack), (Family::V6, Forwarding::Redirect)] {
        let cluster = simple(family, Shape::Routed, forwarding, 2).await;
        let (client, empty) = client(&cluster).await;
        let caller = Caller::at("client", client.pod().unwrap());
        let web = cluster.cluster_ip("default", "web").unwrap();
        let before = async {
            caller.hostname(SocketAddr::new(web, 80)).await.unwrap();
        };
        before.await;
        let traffic = async {
            for _ in 0..5 {
                caller.hostname(SocketAddr::new(web, 80)).await.unwrap();
            }
            for _ in 0..3 {
                let refused = caller.connect(SocketAddr::new(empty, 80)).await;
                assert_eq!(refused.map(|_| ()), Err(NetError::Refused));
            }
        };
        let (events, said) = beside(&cluster, &["watch", "--for", "5"], traffic).await;
        let of_web = |event| [("event", event), ("service", "default/web:http"), ("protocol", "TCP")];
        for event in ["opened", "answered", "closed"] {
            assert_eq!(count(&events, &of_web(event)), 5, "{family:?} {event}: {events:#?}");
        }
        let refused = [("event", "refused"), ("reason", "no_endpoint"), ("service", "default/empty:http")];
        let refused =
            events.iter().filter(|event| refused.iter().all(|(field, value)| event[field] == *value));
        // Where a refusal arrives while connect(2) still holds the socket, Linux (6.18, `tcp_v6_err`) believes only that of
        // the repeated SYN, whoever sent it.
        let refused: BTreeSet<_> =
            refused.map(|event| event["client"].as_str().unwrap().to_owned()).collect();
        assert_eq!(refused.len(), 3, "{events:#?}");
        assert_eq!(said, "", "nothing was left out");
        let pods: BTreeSet<String> = (0..2)
            .map(|number| cluster.runtime().pod("default", &format!("web-{number}")).unwrap())
            .map(|pod| SocketAddr::new(pod.addresses()[0], 8080).to_string())
            .collect();
        let mut ends: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for event in events.iter().filter(|event| event["service"] == "default/web:http") {
            let endpoint = event["endpoint"].as_str().unwrap().to_owned();
            assert!(pods.contains(&endpoint), "{endpoint} is none of {pods:?}");
            assert_eq!(event["frontend"], SocketAddr::new(web, 80).to_string());
            let client = event["client"].as_str().unwrap().to_owned();
            ends.entry(client).or_default().push(endpoint);
            let micros = event["micros"].as_u64();
            assert_eq!(micros.is_some(), event["event"] == "answered");
            assert!(micros.is_none_or(|micros| micros < 5_000_000), "{event}");
        }
        assert_eq!(ends.len(), 5, "a client port each");
        assert!(ends.values().all(|ends| ends.iter().all(|end| *end == ends[0])), "{ends:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_tells_what_is_asked_for_one_at_a_time_and_without_an_agent() {
    let mut cluster = simple(Family::V4, Shape::Bridged, Forwarding::Stack, 1).await;
    let (client, empty) = client(&cluster).await;
    let caller = Caller::at("client", client.pod().unwrap());
    let web = cluster.cluster_ip("default", "web").unwrap();
    cluster.agent(0).sigkill();
    let node = cluster.node(0).clone();
    let root = format!("--bpf-root={}", cluster.bpf_root(&node).display());
    let traffic = async {
        let second = node.agent_command(&["watch", &root], SECONDS).await.unwrap();
        let said = String::from_utf8_lossy(&second.stderr).into_owned();
        assert!(!second.status.success() && said.contains("one at a time"), "{said}");
        for _ in 0..40 {
            assert!(caller.connect(SocketAddr::new(empty, 80)).await.is_err());
            caller.hostname(SocketAddr::new(web, 80)).await.unwrap();
        }
    };
    let args = ["watch", "--service=web", "--kind=opened,refused", "--rate=5", "--for=7"];
    let (events, said) = beside(&cluster, &args, traffic).await;
    assert_eq!(count(&events, &[("event", "opened"), ("service", "default/web:http")]), events.len());
    assert!(!events.is_empty() && events.len() < 40, "five a second on each CPU: {}", events.len());
    assert!(said.contains("events were left out: more than --rate 5"), "{said}");
    // Who does not watch costs nothing: no record is written any more.
    let traffic = async { caller.hostname(SocketAddr::new(web, 80)).await.map(drop).unwrap() };
    let (events, _) = beside(&cluster, &["watch", "--kind=dropped", "--for=3"], traffic).await;
    assert_eq!(events, Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn top_tells_the_rates_of_traffic() {
    let cluster = simple(Family::V4, Shape::Routed, Forwarding::Stack, 2).await;
    let (client, empty) = client(&cluster).await;
    let caller = Caller::at("client", client.pod().unwrap());
    let web = cluster.cluster_ip("default", "web").unwrap();
    let traffic = async {
        for _ in 0..20 {
            caller.hostname(SocketAddr::new(web, 80)).await.unwrap();
            assert!(caller.connect(SocketAddr::new(empty, 80)).await.is_err());
        }
    };
    let (looks, _) = beside(&cluster, &["top", "-n", "6", "-i", "1"], traffic).await;
    assert_eq!(looks.len(), 6);
    let sum = |list: &str, service: &str, field: &str| -> f64 {
        let rows = looks.iter().flat_map(|look| {
            let seconds = look["seconds"].as_f64().unwrap();
            let rows = look[list].as_array().unwrap().iter();
            rows.filter(|row| row["service"] == service)
                .map(move |row| row[field].as_f64().unwrap_or(0.0) * seconds)
        });
        // Rates times seconds are counts again, but for the last digits of the arithmetic.
        (rows.sum::<f64>() * 1e6).round() / 1e6
    };
    assert_eq!(sum("services", "default/web:http", "connections_per_second"), 20.0);
    assert_eq!(sum("endpoints", "default/web:http", "connections_per_second"), 20.0);
    assert_eq!(sum("services", "default/empty:http", "errors_per_second"), 20.0);
    assert!(sum("services", "default/web:http", "packets_per_second") >= 20.0 * 6.0);
    assert!(sum("services", "default/web:http", "handshake_seconds") > 0.0);
    assert!(sum("endpoints", "default/web:http", "handshake_seconds") > 0.0);
    let busiest =
        looks.iter().find(|look| look["services"][0]["connections_per_second"] != json!(0.0)).unwrap();
    assert_eq!(busiest["services"][0]["service"], "default/web:http");
    let reasons: Vec<_> = looks.iter().flat_map(|look| look["reasons"].as_array().unwrap()).collect();
    assert!(reasons.iter().all(|rate| rate["reason"] == "no_endpoint") && !reasons.is_empty(), "{reasons:?}");
    let node = cluster.node(0).clone();
    let root = format!("--bpf-root={}", cluster.bpf_root(&node).display());
    let text =
        node.agent_command(&["top", "-n", "1", "-i", "0.2", "--endpoints", &root], SECONDS).await.unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("ENDPOINT") && text.contains("dropped and refused: nothing"), "{text}");
}
