//! `/healthz` and `/livez`, as load balancers and kubelets ask for them.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_tests::{
    lab::{Caller, Family},
    workload::NetError,
};
use serde_json::{Value, json};

use crate::{builder, page, told, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_60_a_node_that_is_about_to_go_is_no_choice_for_load_balancers_but_alive() {
    let mut cluster = builder(Family::Dual).clients(1).start().await.unwrap();
    let node = cluster.node(0).clone();
    let outside = Caller::at("outside", cluster.lab().client(0));
    let ask = async |path: &str| {
        let mut answers = BTreeMap::new();
        for address in node.addresses() {
            let told = outside.http(SocketAddr::new(*address, 10256), path).await.unwrap();
            answers.insert(told.status, serde_json::from_str::<Value>(&told.body).unwrap());
        }
        answers
    };
    let answers = ask("/healthz").await;
    let body = &answers[&200];
    assert_eq!(
        (answers.len(), &body["nodeEligible"]),
        (1, &true.into()),
        "both families say the same: {answers:?}"
    );
    assert!(body["lastUpdated"].is_string() && body["currentTime"].is_string(), "{body}");
    assert_eq!(body["status"]["IPv6"]["healthy"], true, "{body}");

    let taints = |keys: &[&str]| {
        let taints: Vec<Value> = keys.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
        json!({"spec": {"taints": taints}})
    };
    let patch = |value: &Value| cluster.api().patch_value("nodes", "", node.name(), value).unwrap();
    patch(&taints(&["node.kubernetes.io/unschedulable", "ToBeDeletedByClusterAutoscaler"]));
    until("the node is none for load balancers", async || ask("/healthz").await.keys().eq(&[503])).await;
    let body = &ask("/healthz").await[&503];
    assert_eq!((&body["nodeEligible"], &body["healthy"]), (&false.into(), &false.into()), "{body}");
    assert_eq!(body["status"]["IPv4"]["healthy"], true, "the proxy itself is well: {body}");
    let answers = ask("/livez").await;
    assert!(answers.keys().eq(&[200]) && answers[&200].get("nodeEligible").is_none(), "{answers:?}");
    patch(&taints(&["node.kubernetes.io/unschedulable"]));
    until("the node is one again", async || ask("/healthz").await.keys().eq(&[200])).await;

    let page = page(&node).await;
    assert!(page.sum("kubeproxy_proxy_healthz_total", &[("code", "503")]) >= 2.0);
    assert!(page.sum("kubeproxy_proxy_healthz_total", &[("code", "200")]) >= 4.0);
    assert_eq!(page.sum("kubeproxy_proxy_livez_total", &[("code", "200")]), 2.0);
    // Metrics and configuration are the operator's: nobody outside reads them.
    let metrics = SocketAddr::new(node.addresses()[0], 10249);
    assert_eq!(outside.connect(metrics).await.map(|_| ()), Err(NetError::Refused));
    cluster.agent(0).sigterm().await.unwrap();
    let gone = SocketAddr::new(node.addresses()[0], 10256);
    assert_eq!(outside.connect(gone).await.map(|_| ()), Err(NetError::Refused));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_somebody_has_is_waited_for_unless_it_must_be_had() {
    let mut cluster = builder(Family::V4).without_agents().start().await.unwrap();
    let node = cluster.node(0).clone();
    let taken = node.namespace().tcp_listener("0.0.0.0:10256".parse().unwrap()).unwrap();
    let mut options = cluster.agent_options(&node).unwrap();
    options.args.push("--bind-address-hard-fail".to_owned());
    let agent = node.start_agent(options).unwrap();
    until("it gives up", async || agent.exit_status().is_some()).await;
    assert_eq!(agent.exit_status().and_then(|status| status.code()), Some(64), "{}", agent.log());
    assert!(agent.log().contains("--healthz-bind-address [::]:10256"), "{}", agent.log());
    drop(agent);

    cluster.start_agents().unwrap();
    cluster.agents_ready().await.unwrap();
    assert!(cluster.agent(0).log().contains("does not listen yet"), "{}", cluster.agent(0).log());
    drop(taken);
    let own = Caller::on_node(&node).unwrap();
    let at = SocketAddr::new("127.0.0.1".parse().unwrap(), 10256);
    until("it listens", async || own.http(at, "/livez").await.is_ok_and(|told| told.status == 200)).await;
    assert_eq!(told(&node, 10256, "/nothing").await.status, 404);
}
