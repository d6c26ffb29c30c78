//! Services whose connections choose by the client's hash.

use std::{collections::BTreeMap, net::SocketAddr};

use k8s_openapi::api::core::v1::Service;
use lb_tests::{
    cluster::{Cluster, Forwarding},
    lab::{Caller, Family, Shape},
};
use serde_json::json;

use crate::common::{builder, service, web};

/// Two nodes with two endpoints each, an outside client, and the Service `web` with node ports; `annotation` says how.
async fn outside(annotation: &str, agent: &[&str]) -> Cluster {
    let cluster = builder(Family::Dual, Shape::Routed, Forwarding::Stack)
        .nodes(2)
        .clients(1)
        .agent_args(agent.iter().copied())
        .start()
        .await
        .unwrap();
    let mut object = service("web", json!({"app": "web"}));
    object["spec"]["type"] = "NodePort".into();
    if !annotation.is_empty() {
        object["metadata"]["annotations"] = json!({"lb-agent/load-balancing": annotation});
    }
    cluster.api().create(&object).unwrap();
    for number in 0..4 {
        web(&cluster, number).await;
    }
    cluster.settle("default").await.unwrap();
    cluster
}

/// Which pods a client's source ports lead to, by either node: those of the first node, those of the second.
async fn pods(cluster: &Cluster, v6: bool, udp: bool) -> [BTreeMap<u16, String>; 2] {
    let service = cluster.api().value("services", "default", "web").unwrap();
    let port = service["spec"]["ports"][usize::from(udp)]["nodePort"].as_u64().unwrap() as u16;
    let client = Caller::at("client", cluster.lab().client(0));
    let mut found = [BTreeMap::new(), BTreeMap::new()];
    for (node, found) in cluster.lab().nodes().iter().zip(&mut found) {
        let address = *node.addresses().iter().find(|address| address.is_ipv6() == v6).unwrap();
        let to = SocketAddr::new(address, port);
        for source in 40_000..40_024 {
            let from = client.from_port(source);
            let pod = if udp { from.udp_hostname(to).await } else { from.hostname(to).await };
            found.insert(source, pod.unwrap());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_leads_a_client_to_the_same_endpoint() {
    let cluster = outside("maglev", &[]).await;
    for (v6, udp) in [(false, false), (true, false), (false, true), (true, true)] {
        let [first, second] = pods(&cluster, v6, udp).await;
        assert_eq!(first, second);
        let distinct: std::collections::BTreeSet<&String> = first.values().collect();
        assert!(distinct.len() > 1, "all connections at {distinct:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_flag_is_for_services_that_do_not_say() {
    let cluster = outside("", &["--load-balancing=maglev", "--max-slots=1000000"]).await;
    let [first, second] = pods(&cluster, false, false).await;
    assert_eq!(first, second);
    // By chance two dozen connections go to the same endpoints either way once in 4^24 runs.
    cluster
        .api()
        .patch::<Service>(
            "default",
            "web",
            &json!({"metadata": {"annotations": {"lb-agent/load-balancing": "random"}}}),
        )
        .unwrap();
    cluster.settle("default").await.unwrap();
    let [first, second] = pods(&cluster, false, true).await;
    assert_ne!(first, second);
}
