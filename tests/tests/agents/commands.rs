//! What the commands print, for programs and for people.

use std::net::SocketAddr;

use lb_tests::{
    cluster::{Forwarding, url},
    lab::{Family, Shape},
    workload::{HttpRequest, NetError, TcpOptions, tcp_connect},
};
use serde_json::{Value, json};

use crate::common::{SECONDS, builder, simple};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_prints_json_that_parses_also_without_an_agent() {
    let mut cluster = simple(Family::Dual, Shape::Bridged, Forwarding::Redirect, 2).await;
    let client = cluster.netexec_pod("default", "client", cluster.node(0), &json!({})).await.unwrap();
    let ip = cluster.cluster_ip("default", "web").unwrap();
    let mut stream = HttpRequest::get(&url(ip, 80, "/"))
        .tcp(TcpOptions { source_port: 33_333, ..TcpOptions::default() })
        .connect(&client)
        .await
        .unwrap();
    let answered_by = stream.get("/").await.unwrap().text();
    assert_eq!(tcp_connect(&client, SocketAddr::new(ip, 9)).await.err(), Some(NetError::Refused));
    cluster.agent(0).sigkill();

    let node = cluster.node(0).clone();
    let root = format!("--bpf-root={}", cluster.bpf_root(&node).display());
    let show = async |command: &str| {
        let output = node.agent_command(&[command, "-o", "json", &root], SECONDS).await.unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let table = node.agent_command(&[command, &root], SECONDS).await.unwrap();
        assert!(table.status.success() && table.stdout.len() > 20, "{command} as a table");
        rows
    };
    let services = show("services").await;
    let web = services.iter().find(|row| row["service"] == "default/web:http").unwrap();
    assert_eq!(
        (&web["endpoints"], &web["connections"], &web["verdict"]),
        (&json!(2), &json!(1), &json!("random"))
    );
    let backends = show("backends").await;
    let of_web = backends.iter().filter(|row| row["service"] == "default/web:http");
    assert_eq!(of_web.filter_map(|row| row["connections"].as_u64()).sum::<u64>(), 1, "{backends:?}");
    let connections = show("connections").await;
    let own: Vec<_> = connections
        .iter()
        .filter(|row| row["client"].as_str().is_some_and(|client| client.ends_with(":33333")))
        .collect();
    assert_eq!(own.len(), 1, "{connections:?}");
    let pod = cluster.runtime().pod("default", &answered_by).unwrap();
    assert_eq!(own[0]["endpoint"], SocketAddr::new(pod.addresses()[0], 8080).to_string());
    assert_eq!(own[0]["frontend"], SocketAddr::new(ip, 80).to_string());
    let drops = show("drops").await;
    let unknown = drops.iter().find(|row| row["reason"] == "unknown_port").unwrap();
    assert_eq!(unknown["packets"], 1);
    let check = show("check").await;
    assert!(check.iter().all(|finding| finding["outcome"] != "missing"), "{check:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_cannot_start_says_why_and_exits_with_an_error() {
    let wrong =
        builder(Family::V4, Shape::Routed, Forwarding::Stack).agent_args(["--attach=glue"]).start().await;
    let said = format!("{:#}", wrong.err().unwrap());
    assert!(said.contains("exit status: 64") && said.contains("glue"), "{said}");
}
