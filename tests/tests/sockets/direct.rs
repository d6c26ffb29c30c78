//! Clients that reach an endpoint through a Service, and then that endpoint itself, from one port.

use std::time::Duration;

use lb_tests::{
    cluster::{Cluster, Forwarding},
    lab::Caller,
};
use serde_json::json;

use crate::common::{at, builder, with_web_as};

/// The client's port.
const PORT: u16 = 45_678;
/// A SYN is repeated after 1, 3, 7 and 15 seconds, and the port of a connection that was reset is free after three silent ones.
const PATIENCE: Duration = Duration::from_secs(30);

/// Two nodes, and on each of them an endpoint of the Service `web`, which has node ports.
async fn with_node_ports(forwarding: Forwarding) -> Cluster {
    with_web_as(builder().nodes(2).forwarding(forwarding), json!({"type": "NodePort"}), 2).await
}

/// A process of the second node asks the first one's node port: there its connection is masqueraded. Asked for itself, the
/// endpoint sees it come from the same port.
async fn an_endpoint_answers_a_process_of_another_node(forwarding: Forwarding) {
    let cluster = with_node_ports(forwarding).await;
    let caller = Caller::on_node(cluster.node(1)).unwrap().within(PATIENCE);
    let pods = cluster.pods("default", "app=web").unwrap();
    let web = cluster.api().value("services", "default", "web").unwrap();
    let port = web["spec"]["ports"][0]["nodePort"].as_u64().unwrap() as u16;
    for address in cluster.node(0).addresses() {
        for number in 0..8 {
            let caller = caller.from_port(PORT + number);
            let name = caller.hostname(at(*address, port)).await.unwrap();
            let pod = pods.iter().find(|pod| pod.name() == name).unwrap();
            let own = *pod.addresses().iter().find(|own| own.is_ipv4() == address.is_ipv4()).unwrap();
            let answer = caller.hostname(at(own, 8080)).await;
            assert_eq!(answer.as_deref(), Ok(&*name), "{own} itself, after {address}");
        }
    }
}

async fn an_endpoint_answers_for_itself(forwarding: Forwarding) {
    let cluster = with_node_ports(forwarding).await;
    let labels = json!({"app": "client"});
    let client = cluster.netexec_pod("default", "client", cluster.node(0), &labels).await.unwrap();
    let caller = Caller::at("client", &client).within(PATIENCE);
    let pods = cluster.pods("default", "app=web").unwrap();
    for vip in cluster.cluster_ips("default", "web").unwrap() {
        for number in 0..8 {
            // Chance leads to the endpoint on this node or to the other one.
            let caller = caller.from_port(PORT + number);
            let name = caller.udp_hostname(at(vip, 81)).await.unwrap();
            let pod = pods.iter().find(|pod| pod.name() == name).unwrap();
            let own = *pod.addresses().iter().find(|own| own.is_ipv4() == vip.is_ipv4()).unwrap();
            let answer = caller.udp_hostname(at(own, 8081)).await;
            assert_eq!(answer.as_deref(), Ok(&*name), "{own} itself, after {vip}");
            // And through the Service again.
            caller.udp_hostname(at(vip, 81)).await.unwrap();
        }
    }
    // A connection that is over lets go of its port as well.
    let vip = cluster.cluster_ips("default", "web").unwrap()[0];
    let caller = caller.from_port(PORT);
    let name = caller.hostname(at(vip, 80)).await.unwrap();
    let pod = pods.iter().find(|pod| pod.name() == name).unwrap();
    let answer = caller.hostname(at(pod.addresses()[0], 8080)).await;
    assert_eq!(answer.as_deref(), Ok(&*name), "{name} itself, after {vip}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoint_itself_answers_a_port_that_was_used_through_its_service_stack() {
    an_endpoint_answers_for_itself(Forwarding::Stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoint_itself_answers_a_port_that_was_used_through_its_service_redirect() {
    an_endpoint_answers_for_itself(Forwarding::Redirect).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoint_itself_answers_a_port_of_a_node_that_was_used_through_a_node_port_stack() {
    an_endpoint_answers_a_process_of_another_node(Forwarding::Stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoint_itself_answers_a_port_of_a_node_that_was_used_through_a_node_port_redirect() {
    an_endpoint_answers_a_process_of_another_node(Forwarding::Redirect).await;
}
