//! `lb-agent explain` against real packets: what it says, a client then meets.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_tests::{
    cluster::{Cluster, Forwarding},
    lab::{Caller, Family, KubePod, Node, Shape},
    workload::NetError,
};
use serde_json::{Value, json};

use crate::common::{SECONDS, builder, service};

/// Loading programs takes a second of CPU, which may be long on a machine that has none to spare.
const LOADING: Duration = Duration::from_secs(60);
/// A client's port, of which the test knows that nobody else has it.
const PORT: u16 = 45_678;

/// Asks on a node, for JSON, and sees that the text says as much.
async fn explain(cluster: &Cluster, node: &Node, from: &str, to: &str) -> Value {
    let root = format!("--bpf-root={}", cluster.bpf_root(node).display());
    let args = ["explain", "--from", from, "--to", to, &root];
    let output = node.agent_command(&[&args[..], &["-o", "json"]].concat(), LOADING).await.unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn text(cluster: &Cluster, node: &Node, from: &str, to: &str) -> String {
    let root = format!("--bpf-root={}", cluster.bpf_root(node).display());
    let output = node.agent_command(&["explain", "--from", from, "--to", to, &root], LOADING).await.unwrap();
    assert!(output.status.success(), "{from} {to}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The packet's source and destination when it arrives.
fn arrives(told: &Value) -> (SocketAddr, SocketAddr) {
    let mut steps = told["steps"].as_array().unwrap().iter();
    let packet = steps.rfind(|step| step["way"] == "request" && !step["packet"].is_null());
    let packet = &packet.unwrap_or_else(|| panic!("no packet arrives: {told:#}"))["packet"];
    let end = |at: usize| packet[at].as_str().unwrap().parse().unwrap();
    (end(0), end(1))
}

fn outcome(told: &Value) -> (&str, &str) {
    let verdict = &told["verdict"];
    (verdict["outcome"].as_str().unwrap(), verdict["reason"].as_str().unwrap_or(""))
}

fn no_problems(told: &Value) {
    assert_eq!(told["problems"], json!([]), "{told:#}");
    assert_eq!(told["programs"]["attached"], told["programs"]["asked"], "{told:#}");
}

/// A Service whose only endpoint is a pod on that node.
async fn alone(cluster: &Cluster, name: &str, node: &Node, fields: Value) -> KubePod {
    let mut object = service(name, json!({"app": name}));
    let spec = object["spec"].as_object_mut().unwrap();
    spec.extend(fields.as_object().unwrap().clone());
    cluster.api().create(&object).unwrap();
    cluster.netexec_pod("default", name, node, &json!({"app": name})).await.unwrap()
}

/// Everything that packets change: counters, drops, connections without their times, and the affinities as they lie.
async fn traces(cluster: &Cluster, node: &Node) -> Vec<String> {
    let root = cluster.bpf_root(node);
    let mut traces = Vec::new();
    for command in ["services", "backends", "drops", "connections"] {
        let root = format!("--bpf-root={}", root.display());
        let output = node.agent_command(&[command, "-o", "json", &root], SECONDS).await.unwrap();
        let mut rows: Value = serde_json::from_slice(&output.stdout).unwrap();
        for row in rows.as_array_mut().unwrap() {
            let row = row.as_object_mut().unwrap();
            // Time goes on, and the agent counts entries when it likes.
            for name in ["age_seconds", "idle_seconds", "entries"] {
                row.remove(name);
            }
        }
        traces.push(format!("{command} {rows}"));
    }
    for map in ["AFFINITY4", "AFFINITY6", "MASQUERADE", "CONTROL", "GENERATIONS"] {
        let path = root.join("maps").join(map).display().to_string();
        let output =
            node.exec(&["bpftool", "-j", "map", "dump", "pinned", &path], &[], SECONDS).await.unwrap();
        let mut text = String::from_utf8(output.stdout).unwrap();
        if map == "CONTROL" {
            // The agent's own clock ticks in there.
            text = text.chars().take(200).collect();
        }
        traces.push(format!("{map} {text}"));
    }
    traces
}

fn end(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// Pods' connections: carried, refused, dropped; as the client then sees it.
async fn of_pods(shape: Shape, forwarding: Forwarding) {
    let mut cluster = builder(Family::Dual, shape, forwarding).nodes(2).start().await.unwrap();
    let (here, there) = (cluster.node(0).clone(), cluster.node(1).clone());
    let near = alone(&cluster, "near", &here, json!({})).await;
    let far = alone(&cluster, "far", &there, json!({})).await;
    let nobody = service("nobody", json!({"app": "nobody"}));
    cluster.api().create(&nobody).unwrap();
    let client = cluster.netexec_pod("default", "client", &here, &json!({})).await.unwrap();
    cluster.settle("default").await.unwrap();
    let caller = Caller::in_pod(client.pod().unwrap()).unwrap();
    // What the kernel knows of neighbours, it knows from packets.
    for ip in cluster.cluster_ips("default", "near").unwrap() {
        caller.hostname(end(ip, 80)).await.unwrap();
    }
    let before = traces(&cluster, &here).await;
    let mut stories = Vec::new();
    for v6 in [false, true] {
        let of = |addresses: &[IpAddr]| *addresses.iter().find(|address| address.is_ipv6() == v6).unwrap();
        let ip = |name: &str| of(&cluster.cluster_ips("default", name).unwrap());
        let from = end(of(client.addresses()), PORT).to_string();
        for (name, pod) in [("near", &near), ("far", &far)] {
            for (port, target, protocol) in [(80, 8080, "tcp"), (81, 8081, "udp")] {
                let to = end(ip(name), port);
                let told = explain(&cluster, &here, &from, &format!("{to}/{protocol}")).await;
                no_problems(&told);
                assert_eq!(outcome(&told), ("carried", ""), "{told:#}");
                assert_eq!(told["enters"]["at"], "pod", "{told:#}");
                assert_eq!(told["candidates"][0]["probability"], json!(1.0), "{told:#}");
                assert_eq!(
                    arrives(&told),
                    (from.parse().unwrap(), end(of(pod.addresses()), target)),
                    "{told:#}"
                );
                let back =
                    told["steps"].as_array().unwrap().iter().rfind(|step| step["way"] == "answer").unwrap();
                assert_eq!(back["packet"], json!([to.to_string(), from]), "{told:#}");
                stories.push((to, protocol, told));
            }
        }
        let cases = [
            (end(ip("nobody"), 80), ("refused", "no_endpoint"), Err(NetError::Refused)),
            (end(ip("near"), 9), ("refused", "unknown_port"), Err(NetError::Refused)),
        ];
        for (to, expected, then) in cases {
            let told = explain(&cluster, &here, &from, &to.to_string()).await;
            assert_eq!(outcome(&told), expected, "{told:#}");
            assert!(told["verdict"]["advice"].as_str().is_some_and(|advice| advice.len() > 20), "{told:#}");
            stories.push((to, "tcp", json!({"then": format!("{:?}", then as Result<(), _>)})));
        }
        let told = explain(&cluster, &here, &from, &end(of(near.addresses()), 8080).to_string()).await;
        assert_eq!(outcome(&told), ("passed", ""), "no Service: {told:#}");
        let told = explain(&cluster, &here, &from, &format!("{}/icmp", ip("near"))).await;
        assert_eq!(outcome(&told), ("dropped", "not_proxied"), "{told:#}");
    }
    // Asked twenty times, and nothing has changed in the kernel.
    assert_eq!(traces(&cluster, &here).await, before);
    // What was said is what happens.
    for (to, protocol, told) in stories {
        let caller = caller.from_port(PORT);
        if let Some(then) = told["then"].as_str() {
            assert_eq!(format!("{:?}", caller.connect(to).await.map(drop)), then, "{to}");
            continue;
        }
        let (seen, _) = arrives(&told);
        let sees = match protocol {
            "tcp" => caller.client_ip(to).await,
            _ => caller.udp_client_ip(to).await,
        };
        assert_eq!(sees.map(|end| end.ip()), Ok(seen.ip()), "{to} {protocol}");
    }
    // A pod that chooses itself; and all of it without an agent.
    cluster.agent(0).sigkill();
    let ip = cluster.cluster_ip("default", "near").unwrap();
    let from = end(near.addresses()[0], PORT);
    let told = explain(&cluster, &here, &from.to_string(), &end(ip, 80).to_string()).await;
    assert_eq!(outcome(&told), ("carried", ""), "{told:#}");
    let itself = Caller::in_pod(near.pod().unwrap()).unwrap().from_port(PORT);
    assert_eq!(itself.client_ip(end(ip, 80)).await, Ok(arrives(&told).0), "{told:#}");
    let text = text(&cluster, &here, &from.to_string(), &end(ip, 80).to_string()).await;
    assert!(text.contains("turned round") && text.contains("VERDICT     carried to"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_explained_of_pods_is_what_they_meet_routed_stack() {
    of_pods(Shape::Routed, Forwarding::Stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_explained_of_pods_is_what_they_meet_bridged_redirect() {
    of_pods(Shape::Bridged, Forwarding::Redirect).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_explained_of_clients_outside_is_what_they_meet() {
    let cluster =
        builder(Family::V4, Shape::Routed, Forwarding::Stack).nodes(2).clients(1).start().await.unwrap();
    let (here, there) = (cluster.node(0).clone(), cluster.node(1).clone());
    alone(&cluster, "open", &there, json!({"type": "NodePort"})).await;
    alone(&cluster, "local", &there, json!({"type": "NodePort", "externalTrafficPolicy": "Local"})).await;
    let shut = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["198.51.100.0/24"]});
    alone(&cluster, "shut", &there, shut).await;
    let vip = "203.0.113.9";
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": vip}]}}});
    cluster.api().patch_status_value("services", "default", "shut", &status).unwrap();
    cluster.settle("default").await.unwrap();
    let outside = cluster.lab().client(0);
    let route = lb_tests::lab::Cidr::new(vip.parse().unwrap(), 32).unwrap();
    outside.add_route(route, here.address()).unwrap();
    let caller = Caller::at("c1", outside).from_port(PORT).within(Duration::from_secs(1));
    let from = end(outside.address(), PORT).to_string();
    let node_port = |name: &str| {
        let object = cluster.api().value("services", "default", name).unwrap();
        object["spec"]["ports"][0]["nodePort"].as_u64().unwrap() as u16
    };

    let to = end(here.address(), node_port("open"));
    let told = explain(&cluster, &here, &from, &to.to_string()).await;
    no_problems(&told);
    assert_eq!((outcome(&told), &told["enters"]["at"]), (("carried", ""), &json!("network")), "{told:#}");
    assert_eq!(caller.client_ip(to).await, Ok(arrives(&told).0), "the node's address and port: {told:#}");
    assert_eq!(arrives(&told).0.ip(), here.address(), "{told:#}");

    let to = end(here.address(), node_port("local"));
    let told = explain(&cluster, &here, &from, &to.to_string()).await;
    assert_eq!(outcome(&told), ("dropped", "no_local_endpoint"), "{told:#}");
    assert_eq!(caller.client_ip(to).await, Err(NetError::Timeout));
    let to = end(there.address(), node_port("local"));
    let told = explain(&cluster, &there, &from, &to.to_string()).await;
    assert_eq!(caller.client_ip(to).await, Ok(from.parse().unwrap()), "{told:#}");
    assert_eq!(arrives(&told).0.to_string(), from, "it keeps its address: {told:#}");

    let to = end(vip.parse().unwrap(), 80);
    let told = explain(&cluster, &here, &from, &to.to_string()).await;
    assert_eq!(outcome(&told), ("dropped", "source_not_allowed"), "{told:#}");
    assert_eq!(caller.client_ip(to).await, Err(NetError::Timeout));

    // A node port at an address that has none.
    let to = end("203.0.113.77".parse().unwrap(), node_port("open"));
    let told = explain(&cluster, &here, &from, &to.to_string()).await;
    let advice = told["verdict"]["advice"].as_str().unwrap_or_default();
    assert!(outcome(&told).0 == "passed" && advice.contains("node port of default/open"), "{told:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_and_affinities_that_stand_are_told_and_not_renewed() {
    let cluster = builder(Family::V4, Shape::Bridged, Forwarding::Stack).start().await.unwrap();
    let here = cluster.node(0).clone();
    let mut object = service("sticky", json!({"app": "sticky"}));
    object["spec"]["sessionAffinity"] = "ClientIP".into();
    cluster.api().create(&object).unwrap();
    for number in 0..3 {
        let name = format!("sticky-{number}");
        cluster.netexec_pod("default", &name, &here, &json!({"app": "sticky"})).await.unwrap();
    }
    let client = cluster.netexec_pod("default", "client", &here, &json!({})).await.unwrap();
    cluster.settle("default").await.unwrap();
    let caller = Caller::in_pod(client.pod().unwrap()).unwrap();
    let to = end(cluster.cluster_ip("default", "sticky").unwrap(), 80);
    let told = explain(&cluster, &here, &client.addresses()[0].to_string(), &to.to_string()).await;
    let chances: f64 =
        told["candidates"].as_array().unwrap().iter().map(|it| it["probability"].as_f64().unwrap()).sum();
    assert!((chances - 1.0).abs() < 1e-9, "{told:#}");
    assert!((told["candidates"][2]["probability"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-9, "{told:#}");

    let flow = caller.from_port(PORT).http_flow(to).await.unwrap();
    let chosen = flow.get("/hostname").await.unwrap();
    let chosen = cluster.runtime().pod("default", &chosen).unwrap();
    let endpoint = end(chosen.addresses()[0], 8080);
    let from = end(client.addresses()[0], PORT);
    let told = explain(&cluster, &here, &from.to_string(), &to.to_string()).await;
    assert_eq!(told["connection"]["endpoint"], endpoint.to_string(), "{told:#}");
    assert_eq!(told["connection"]["state"], "ESTABLISHED", "{told:#}");
    assert_eq!(arrives(&told).1, endpoint, "{told:#}");
    // A new connection goes there, too; asking does not make the affinity younger.
    let before = traces(&cluster, &here).await;
    for _ in 0..3 {
        let told = explain(&cluster, &here, &from.ip().to_string(), &to.to_string()).await;
        assert_eq!((&told["connection"], arrives(&told).1), (&Value::Null, endpoint), "{told:#}");
        assert_eq!(told["candidates"][0]["probability"], json!(1.0), "{told:#}");
    }
    assert_eq!(traces(&cluster, &here).await, before);
    assert_eq!(flow.get("/hostname").await.unwrap(), chosen.name());
    // The answers of that connection are explained, too.
    let told = explain(&cluster, &here, &endpoint.to_string(), &from.to_string()).await;
    assert!(told["connection"]["says"].as_str().unwrap().contains("answers"), "{told:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_of_the_node_are_told_what_their_sockets_meet() {
    let cluster = builder(Family::V4, Shape::Routed, Forwarding::Stack).start().await.unwrap();
    let here = cluster.node(0).clone();
    let pod = alone(&cluster, "web", &here, json!({"type": "NodePort"})).await;
    cluster.api().create(&service("nobody", json!({"app": "nobody"}))).unwrap();
    cluster.settle("default").await.unwrap();
    let caller = Caller::on_node(&here).unwrap();
    let own = here.address().to_string();
    let ip = |name: &str| cluster.cluster_ip("default", name).unwrap();
    let told = explain(&cluster, &here, &own, &end(ip("web"), 80).to_string()).await;
    assert_eq!((outcome(&told), &told["enters"]["at"]), (("carried", ""), &json!("socket")), "{told:#}");
    assert_eq!(told["candidates"][0]["endpoint"], end(pod.addresses()[0], 8080).to_string(), "{told:#}");
    assert_eq!(caller.hostname(end(ip("web"), 80)).await.as_deref(), Ok("web"));
    for (to, reason) in [(end(ip("nobody"), 80), "no_endpoint"), (end(ip("web"), 9), "unknown_port")] {
        let told = explain(&cluster, &here, &own, &to.to_string()).await;
        assert_eq!(outcome(&told), ("refused", reason), "{told:#}");
        assert_eq!(caller.connect(to).await.err(), Some(NetError::Refused));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_whose_device_has_no_programs_is_told_so() {
    let mut cluster = builder(Family::V4, Shape::Routed, Forwarding::Stack).start().await.unwrap();
    let here = cluster.node(0).clone();
    alone(&cluster, "web", &here, json!({})).await;
    let client = cluster.netexec_pod("default", "client", &here, &json!({})).await.unwrap();
    cluster.settle("default").await.unwrap();
    let to = end(cluster.cluster_ip("default", "web").unwrap(), 80);
    let caller = Caller::in_pod(client.pod().unwrap()).unwrap().within(Duration::from_secs(1));
    assert_eq!(caller.hostname(to).await.as_deref(), Ok("web"));
    // Somebody takes the programs away, and no agent puts them back.
    cluster.agent(0).sigkill();
    let index = client.pod().unwrap().host_device().index;
    for program in ["from_pod", "to_pod"] {
        let pin = cluster.bpf_root(&here).join("links").join(format!("{index}-{program}"));
        std::fs::remove_file(pin).unwrap();
    }
    crate::common::until("the programs to be gone", async || caller.hostname(to).await.is_err()).await;
    let told = explain(&cluster, &here, &client.addresses()[0].to_string(), &to.to_string()).await;
    let problems = told["problems"].to_string();
    assert!(problems.contains("NOT served") && problems.contains("--pod-devices"), "{told:#}");
    assert_eq!(told["enters"]["attached"], false, "{told:#}");
}
