//! Health check node ports, and what agents tell of Services in events.

use std::{net::SocketAddr, time::Duration};

use k8s_openapi::api::events::v1::Event;
use lb_tests::{
    apiserver::DeleteOptions,
    cluster::{Cluster, Forwarding},
    lab::{Caller, Family, Shape},
    workload::{NetError, Told},
};
use serde_json::{Value, json};

use crate::common::{SECONDS, builder, service, until, web};

/// A load balancer's Service that keeps sources, with or without pods on the node.
fn balanced(cluster: &Cluster, name: &str) -> (u16, u16) {
    let mut object = service(name, json!({"app": "web"}));
    object["spec"]["type"] = "LoadBalancer".into();
    object["spec"]["externalTrafficPolicy"] = "Local".into();
    let created: Value = cluster.api().create(&object).unwrap();
    let number = |value: &Value| value.as_u64().unwrap() as u16;
    (number(&created["spec"]["healthCheckNodePort"]), number(&created["spec"]["ports"][0]["nodePort"]))
}

/// The events told of a Service, by reason.
fn events(cluster: &Cluster, reason: &str) -> Vec<Event> {
    let events: Vec<Event> = cluster.api().list(Some("default"), "").unwrap();
    events.into_iter().filter(|event| event.reason.as_deref() == Some(reason)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_61_a_load_balancer_is_told_how_many_endpoints_are_here() {
    let mut cluster =
        builder(Family::Dual, Shape::Routed, Forwarding::Stack).clients(1).start().await.unwrap();
    let (health, _) = balanced(&cluster, "web");
    let outside = Caller::at("outside", cluster.lab().client(0));
    let node = cluster.node(0).clone();
    let status =
        async |address| outside.http(SocketAddr::new(address, health), "/any").await.map(|told| told.status);
    for address in node.addresses() {
        until("a node without endpoints says so", async || status(*address).await == Ok(503)).await;
    }
    for number in 0..2 {
        web(&cluster, number).await;
    }
    for address in node.addresses() {
        until("a node with endpoints says so", async || status(*address).await == Ok(200)).await;
        let expected = json!({
            "service": {"namespace": "default", "name": "web"},
            "localEndpoints": 2, "serviceProxyHealthy": true,
        });
        until(&format!("two endpoints at {address}"), async || {
            let Told { body, .. } = outside.http(SocketAddr::new(*address, health), "/").await.unwrap();
            serde_json::from_str::<Value>(&body).unwrap() == expected
        })
        .await;
    }
    // Nobody answers for an agent that is gone; the next one does.
    let own = node.addresses()[0];
    cluster.agent(0).sigterm().await.unwrap();
    assert_eq!(status(own).await, Err(NetError::Refused));
    cluster.agent(0).restart().unwrap();
    cluster.agent(0).wait_ready().await.unwrap();
    until("the new agent answers", async || status(own).await == Ok(200)).await;
    // Another policy, no more questions.
    let patch = json!({"spec": {"externalTrafficPolicy": "Cluster", "healthCheckNodePort": null}});
    cluster.api().patch_value("services", "default", "web", &patch).unwrap();
    until("the port is closed", async || status(own).await == Err(NetError::Refused)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_61_a_port_that_somebody_has_is_told_in_an_event_and_served_when_it_is_free() {
    let cluster = builder(Family::V4, Shape::Routed, Forwarding::Stack).clients(1).start().await.unwrap();
    let node = cluster.node(0).clone();
    let taken = node.namespace().tcp_listener("0.0.0.0:32001".parse().unwrap()).unwrap();
    let mut object = service("web", json!({"app": "web"}));
    object["spec"]["type"] = "LoadBalancer".into();
    object["spec"]["externalTrafficPolicy"] = "Local".into();
    object["spec"]["healthCheckNodePort"] = 32001.into();
    cluster.api().create(&object).unwrap();
    let reason = "FailedToStartServiceHealthcheck";
    until("the event", async || !events(&cluster, reason).is_empty()).await;
    let told = events(&cluster, reason);
    let regarding = told[0].regarding.as_ref().unwrap();
    let object = cluster.api().value("services", "default", "web").unwrap();
    assert_eq!(regarding.name.as_deref(), Some("web"));
    assert_eq!(regarding.uid.as_deref(), object["metadata"]["uid"].as_str());
    assert_eq!(told[0].type_.as_deref(), Some("Warning"));
    assert!(told[0].note.as_ref().unwrap().contains("32001"), "{told:?}");

    drop(taken);
    web(&cluster, 0).await;
    let outside = Caller::at("outside", cluster.lab().client(0));
    let to = SocketAddr::new(node.addresses()[0], 32001);
    until("served after all", async || outside.http(to, "/").await.is_ok_and(|told| told.status == 200))
        .await;
    assert_eq!(events(&cluster, reason).len(), 1, "told once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_83_who_does_not_get_a_frontend_learns_of_it_in_an_event() {
    let cluster = builder(Family::V4, Shape::Routed, Forwarding::Stack).start().await.unwrap();
    for name in ["first", "second"] {
        let mut object = service(name, json!({"app": name}));
        object["spec"]["externalIPs"] = json!(["203.0.113.250"]);
        cluster.api().create(&object).unwrap();
        // The creation time, by whole seconds, decides; the name does not in this order.
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    until("the event", async || events(&cluster, "FrontendContested").len() == 2).await;
    for event in events(&cluster, "FrontendContested") {
        assert_eq!(event.regarding.as_ref().unwrap().name.as_deref(), Some("second"), "{event:?}");
        let note = event.note.unwrap();
        assert!(note.contains("203.0.113.250:8") && note.contains("default/first"), "{note}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_23_ranges_of_cluster_ips_are_those_of_the_service_cidr_objects() {
    let mut cluster = builder(Family::V4, Shape::Routed, Forwarding::Stack)
        .agents_learn_service_cidrs()
        .without_agents()
        .start()
        .await
        .unwrap();
    let range = |name: &str, cidr: &str| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": name}, "spec": {"cidrs": [cidr]},
        })
    };
    cluster.api().create(&range("lab-first", "10.200.0.0/24")).unwrap();
    cluster.start_agents().unwrap();
    cluster.agents_ready().await.unwrap();
    let client = cluster.netexec_pod("default", "client", cluster.node(0), &json!({})).await.unwrap();
    let caller = Caller::at("client", client.pod().unwrap()).within(Duration::from_millis(300));
    // Where nobody answers: dropped inside a range; outside the router says that it knows no way, or passes it on.
    let drops = async || {
        let root = format!("--bpf-root={}", cluster.bpf_root(cluster.node(0)).display());
        let output = cluster.node(0).agent_command(&["drops", "-o", "json", &root], SECONDS).await.unwrap();
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let row = rows.iter().find(|row| row["reason"] == "unallocated_address").unwrap().clone();
        row["packets"].as_u64().unwrap()
    };
    let is_dropped = async |address: &str| {
        let before = drops().await;
        let _ = caller.connect(SocketAddr::new(address.parse().unwrap(), 80)).await;
        drops().await > before
    };
    until("the first range is in force", async || is_dropped("10.200.0.77").await).await;
    assert!(!is_dropped("10.200.7.77").await);
    cluster.api().create(&range("lab-second", "10.200.7.0/24")).unwrap();
    until("the second range is in force", async || is_dropped("10.200.7.77").await).await;
    assert!(is_dropped("10.200.0.77").await);
    cluster.api().delete_value("servicecidrs", "", "lab-second", &DeleteOptions::default()).unwrap();
    until("the second range is gone", async || !is_dropped("10.200.7.77").await).await;
    assert!(is_dropped("10.200.0.77").await);
}
