//! `lb-agent get` and `lb-agent set`, on an agent at work.

use std::path::Path;

use lb_tests::{cluster::Forwarding, lab::Family};
use serde_json::Value;

use crate::common::{SECONDS, Site, builder, metric, until};
use crate::traffic::Traffic;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn knobs_are_turned_while_traffic_goes_on_and_are_forgotten_with_the_agent() {
    let mut site = Site::start(builder(1, Family::V4, Forwarding::Stack), 2).await;
    site.warm_up().await;
    let node = site.cluster.node(0).clone();
    let run_dir = site.cluster.agent(0).run_dir();
    let run_dir_flag = format!("--run-dir={}", run_dir.display());
    let command = async |words: &[&str]| {
        let output = node.agent_command(&[words, &[run_dir_flag.as_str()]].concat(), SECONDS).await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let traffic = Traffic::start(&site.ways(), 20, 40).await;
    let (done, text) = command(&["get"]).await;
    assert!(done && text.contains("log=info\n") && text.contains("metrics-detail=services\n"), "{text}");

    let debug = |log: String| log.lines().filter(|line| line.contains("DEBUG")).count();
    assert_eq!(debug(site.cluster.agent(0).log()), 0);
    let (done, text) = command(&["set", "log=debug", "metrics-detail=endpoints"]).await;
    assert!(done && text.contains("log=debug  (started with info)"), "{text}");
    site.add(2).await;
    until("lines at level debug", async || debug(site.cluster.agents()[0].log()) > 0).await;
    let detailed = async || metric(&node, "lb_endpoint_connections_total", "").await > 0.0;
    until("series of endpoints", detailed).await;
    let (done, _) = command(&["set", "log=info"]).await;
    let lines = debug(site.cluster.agent(0).log());
    site.add(3).await;
    assert_eq!((done, debug(site.cluster.agent(0).log())), (true, lines));

    // All or nothing, and in words.
    let (done, text) = command(&["set", "metrics-detail=none", "log=loud"]).await;
    assert!(!done && text.contains("expected error, warn, info"), "{text}");
    let (done, text) = command(&["get", "metrics-detail", "-o", "json"]).await;
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (done, &told[0]["value"], &told[0]["started"]),
        (true, &"endpoints".into(), &"services".into())
    );

    // Somebody who tidies up.
    std::fs::remove_file(run_dir.join("agent.sock")).unwrap();
    until("the socket is back", async || command(&["get"]).await.0).await;

    site.cluster.agent(0).restart().unwrap();
    site.cluster.agent(0).wait_ready().await.unwrap();
    let (done, text) = command(&["get", "metrics-detail"]).await;
    assert_eq!((done, text.as_str()), (true, "metrics-detail=services\n"));
    site.cluster.agent(0).sigterm().await.unwrap();
    assert!(!Path::new(&run_dir).join("agent.sock").exists());
    let (done, text) = command(&["set", "log=debug"]).await;
    assert!(!done && text.contains("no lb-agent answers"), "{text}");
    traffic.pulse().await;
    traffic.stop().await.nobody_noticed("knobs");
}
