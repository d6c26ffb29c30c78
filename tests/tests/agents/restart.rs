//! Agents are stopped, killed, restarted, removed: what clients notice (nothing), what stays, what goes.

use std::{net::SocketAddr, path::Path, time::Duration};

use lb_tests::{
    cluster::{Forwarding, url},
    lab::{Family, Node, Shape},
    workload::{HttpRequest, Load, UdpClient, http_get, tcp_connect},
};
use serde_json::{Value, json};

use crate::common::{SECONDS, add_web, builder, service, simple, until};

/// A stream and a datagram flow through a Service keep their endpoint over the end of the agent and its successor.
async fn nothing_moves(kill: bool, forwarding: Forwarding) {
    let mut cluster = simple(Family::V4, Shape::Routed, forwarding, 4).await;
    let client = cluster.netexec_pod("default", "client", cluster.node(0), &json!({})).await.unwrap();
    let ip = cluster.cluster_ip("default", "web").unwrap();
    let mut stream = HttpRequest::get(&url(ip, 80, "/hostname")).connect(&client).await.unwrap();
    let stream_to = stream.get("/hostname").await.unwrap().text();
    let datagrams = UdpClient::connect(&client, SocketAddr::new(ip, 81), None, 7777).await.unwrap();
    let datagrams_to = datagrams.ask("hostname", SECONDS).await.unwrap();
    let load = Load::http(&url(ip, 80, "/hostname")).interval(Duration::from_millis(3)).start(&client);
    load.wait_for(20, SECONDS).await.unwrap();

    for round in 0..2 {
        if kill {
            cluster.agent(0).sigkill();
        } else {
            let status = cluster.agent(0).sigterm().await.unwrap();
            assert!(status.success(), "SIGTERM: {status}");
        }
        let sent = load.report().requests();
        load.wait_for(sent + 50, SECONDS).await.unwrap();
        assert_eq!(stream.get("/hostname").await.unwrap().text(), stream_to, "round {round}, without agent");
        assert_eq!(datagrams.ask("hostname", SECONDS).await.as_ref(), Ok(&datagrams_to));

        cluster.agent(0).restart().unwrap();
        cluster.agent(0).wait_ready().await.unwrap();
        let sent = load.report().requests();
        load.wait_for(sent + 50, SECONDS).await.unwrap();
        assert_eq!(stream.get("/hostname").await.unwrap().text(), stream_to, "round {round}, new agent");
        assert_eq!(datagrams.ask("hostname", SECONDS).await.as_ref(), Ok(&datagrams_to));
    }
    // The successor is in charge: it moves new connections, and only those.
    for pod in cluster.pods("default", "app=web").unwrap() {
        let labels = json!({"metadata": {"labels": {"app": (pod.name() == stream_to).then_some("web")}}});
        cluster.api().patch_value("pods", "default", pod.name(), &labels).unwrap();
    }
    cluster.settle("default").await.unwrap();
    for _ in 0..10 {
        assert_eq!(http_get(&client, &url(ip, 80, "/hostname")).await.unwrap().text(), stream_to);
    }
    assert_eq!(stream.get("/hostname").await.unwrap().text(), stream_to);
    let report = load.stop().await;
    assert!(report.failures.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_keep_their_endpoint_over_sigkill_and_a_new_agent() {
    nothing_moves(true, Forwarding::Stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_keep_their_endpoint_over_sigterm_and_a_new_agent_in_redirect_mode() {
    nothing_moves(false, Forwarding::Redirect).await;
}

async fn bpftool(node: &Node, arguments: &[&str]) -> Value {
    let argv: Vec<&str> = ["bpftool", "-j"].iter().chain(arguments).copied().collect();
    let output = node.exec(&argv, &[], SECONDS).await.unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn map_id(node: &Node, pin: &Path) -> u64 {
    bpftool(node, &["map", "show", "pinned", &pin.to_string_lossy()]).await["id"].as_u64().unwrap()
}

/// Names of the programs that use a map, attached wherever and however.
async fn programs_of(node: &Node, map: u64) -> Vec<String> {
    let programs = bpftool(node, &["prog", "show"]).await;
    let uses = |program: &&Value| {
        program["map_ids"].as_array().is_some_and(|maps| maps.iter().any(|id| id.as_u64() == Some(map)))
    };
    let name = |program: &Value| program["name"].as_str().unwrap_or_default().to_owned();
    programs.as_array().unwrap().iter().filter(uses).map(name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cleanup_removes_links_pins_and_translation() {
    let mut cluster = simple(Family::V4, Shape::Routed, Forwarding::Stack, 1).await;
    let client = cluster.netexec_pod("default", "client", cluster.node(0), &json!({})).await.unwrap();
    let ip = cluster.cluster_ip("default", "web").unwrap();
    http_get(&client, &url(ip, 80, "/")).await.unwrap();
    let node = cluster.node(0).clone();
    let root = format!("--bpf-root={}", cluster.bpf_root(&node).display());
    let control = map_id(&node, &cluster.bpf_root(&node).join("maps/CONTROL")).await;
    let programs = programs_of(&node, control).await;
    for program in ["from_pod", "to_pod", "from_net", "to_net"] {
        assert!(programs.iter().any(|name| name == program), "{programs:?}");
    }

    let refused = node.agent_command(&["cleanup", &root], SECONDS).await.unwrap();
    assert!(!refused.status.success(), "cleanup under a running agent");
    http_get(&client, &url(ip, 80, "/")).await.unwrap();

    cluster.agent(0).sigterm().await.unwrap();
    let cleaned = node.agent_command(&["cleanup", &root], SECONDS).await.unwrap();
    assert!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
    assert!(
        !cluster.bpf_root(&node).exists()
            || std::fs::read_dir(cluster.bpf_root(&node)).unwrap().next().is_none()
    );
    until("the kernel holds no program any more", async || programs_of(&node, control).await.is_empty())
        .await;
    let direct = SocketAddr::new(ip, 80);
    assert_ne!(tcp_connect(&client, direct).await.map(drop), Ok(()), "the Service still works");
    // Once more: nothing is left to do, and that is no error.
    assert!(node.agent_command(&["cleanup", &root], SECONDS).await.unwrap().status.success());

    // And back again.
    cluster.agent(0).restart().unwrap();
    cluster.agent(0).wait_ready().await.unwrap();
    http_get(&client, &url(ip, 80, "/")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_agents_with_much_to_learn_refuses_nobody() {
    let mut cluster = simple(Family::V4, Shape::Routed, Forwarding::Stack, 2).await;
    for number in 0..200 {
        let name = format!("other-{number}");
        cluster.api().create(&service(&name, json!({"app": "web"}))).unwrap();
    }
    cluster.settle("default").await.unwrap();
    let client = cluster.netexec_pod("default", "client", cluster.node(0), &json!({})).await.unwrap();
    let (first, last) =
        (cluster.cluster_ip("default", "web").unwrap(), cluster.cluster_ip("default", "other-199").unwrap());
    let loads = [first, last]
        .map(|ip| Load::http(&url(ip, 80, "/hostname")).interval(Duration::from_millis(2)).start(&client));
    // A slow API server: the agent is up long before it knows anything.
    cluster.api_server().slow_down(Duration::from_millis(300));
    for _ in 0..2 {
        cluster.agent(0).restart().unwrap();
        cluster.agent(0).wait_ready().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.api_server().slow_down(Duration::ZERO);
    for load in loads {
        let report = load.stop().await;
        assert!(report.failures.is_empty() && report.requests() > 100, "{report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_do_the_same_where_there_are_no_links() {
    let mut cluster = builder(Family::Dual, Shape::Bridged, Forwarding::Redirect)
        .agent_args(["--attach=tc"])
        .start()
        .await
        .unwrap();
    add_web(&cluster, 2).await;
    let client = cluster.netexec_pod("default", "client", cluster.node(0), &json!({})).await.unwrap();
    let node = cluster.node(0).clone();
    let ips = cluster.cluster_ips("default", "web").unwrap();
    // Nothing tells from outside when the newest device has its filters: the first answer does.
    until("the client's first answer", async || http_get(&client, &url(ips[0], 80, "/")).await.is_ok()).await;
    let loads: Vec<_> = ips.iter().map(|ip| Load::http(&url(*ip, 80, "/hostname")).start(&client)).collect();
    for _ in 0..2 {
        cluster.agent(0).sigkill();
        let sent = loads[1].report().requests();
        loads[1].wait_for(sent + 30, SECONDS).await.unwrap();
        cluster.agent(0).restart().unwrap();
        cluster.agent(0).wait_ready().await.unwrap();
    }
    for load in loads {
        let report = load.stop().await;
        assert!(report.failures.is_empty() && report.requests() > 60, "{report}");
    }
    let filters = async || {
        let device = &client.pod().unwrap().host_device().name;
        let mut shown = Vec::new();
        for side in ["ingress", "egress"] {
            shown.extend(
                node.exec(&["tc", "filter", "show", "dev", device, side], &[], SECONDS).await.unwrap().stdout,
            );
        }
        String::from_utf8(shown).unwrap()
    };
    let shown = filters().await;
    assert_eq!(
        (shown.matches("lb-agent/from_pod").count(), shown.matches("lb-agent/to_pod").count()),
        (1, 1),
        "{shown}"
    );
    cluster.agent(0).sigterm().await.unwrap();
    let root = format!("--bpf-root={}", cluster.bpf_root(&node).display());
    assert!(node.agent_command(&["cleanup", &root], SECONDS).await.unwrap().status.success());
    assert_eq!(filters().await, "");
}
