//! Sources that fail, vanish and come back, and files that are none.

use std::{net::SocketAddr, time::Duration};

use lb_tests::{
    cluster::{Forwarding, url},
    lab::{AgentOptions, Family, Lab, Shape},
    workload::{Load, NetError, Netexec, tcp_connect},
};
use serde_json::json;

use crate::common::{SECONDS, simple, until, web};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_follows_again_after_every_kind_of_absence_of_the_api_server() {
    let mut cluster = simple(Family::V4, Shape::Routed, Forwarding::Stack, 2).await;
    let client = cluster.netexec_pod("default", "client", cluster.node(0), &json!({})).await.unwrap();
    let ip = cluster.cluster_ip("default", "web").unwrap();
    let load = Load::http(&url(ip, 80, "/hostname")).interval(Duration::from_millis(3)).start(&client);
    load.wait_for(10, SECONDS).await.unwrap();

    // Watches break in the middle of an event, while pods come.
    for number in 2..5 {
        cluster.api_server().break_watches();
        web(&cluster, number).await;
    }
    cluster.settle("default").await.unwrap();

    // Away; meanwhile a pod comes and the history of changes is lost: 410 Gone on return.
    cluster.api_server().pause();
    web(&cluster, 5).await;
    cluster.api_server().compact();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let sent = load.report().requests();
    load.wait_for(sent + 50, SECONDS).await.unwrap();
    cluster.api_server().resume();
    cluster.settle("default").await.unwrap();

    // Errors, then a token that is refused for a while.
    cluster.api_server().fail_next(5, 500);
    cluster.api_server().break_watches();
    web(&cluster, 6).await;
    cluster.settle("default").await.unwrap();
    cluster.api_server().accept_token(None);
    cluster.api_server().break_watches();
    web(&cluster, 7).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let token = cluster.api_server().token().to_owned();
    cluster.api_server().accept_token(Some(&token));
    cluster.settle("default").await.unwrap();

    let report = load.stop().await;
    assert!(report.failures.is_empty(), "{report}");
    assert_eq!(cluster.agent(0).exit_status(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_manifests_are_survived_and_the_good_ones_served() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let (client, server) = (node.pod("client").unwrap(), node.pod("server").unwrap());
    let _serving = Netexec::new("server").http(8080).start(&server).await.unwrap();
    let manifests = lab.state_dir().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let write = |name: &str, text: &str| std::fs::write(manifests.join(name), text).unwrap();
    write("broken.yaml", "a: [1, 2\n  - {: : :\n\t\"");
    write("binary.yaml", "\u{0}\u{1}\u{fffd}");
    write(
        "nonsense.yaml",
        "{apiVersion: v1, kind: Service, metadata: {name: 7}, spec: {ports: [{port: -1}]}}",
    );
    write("empty.yaml", "---\n---\n");
    let good = |port: u16| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: good, namespace: default}}\nspec: {{clusterIP: 10.96.7.7, \
             clusterIPs: [10.96.7.7], ipFamilies: [IPv4], ports: [{{port: {port}, protocol: TCP}}]}}\n---\napiVersion: \
             discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: good-1, namespace: default, labels: \
             {{kubernetes.io/service-name: good}}}}\naddressType: IPv4\nports: [{{name: '', port: 8080, protocol: TCP}}]\n\
             endpoints: [{{addresses: ['{}'], conditions: {{ready: true}}}}]\n",
            server.address()
        )
    };
    write("good.yaml", &good(80));
    let root = node.bpffs().join("lb-agent");
    let agent = node
        .start_agent(AgentOptions::new([
            "run".to_owned(),
            format!("--manifests={}", manifests.display()),
            format!("--bpf-root={}", root.display()),
            "--node-name=n1".to_owned(),
            "--max-services=1024".to_owned(),
        ]))
        .unwrap();
    agent.wait_ready().await.unwrap();
    let ip = "10.96.7.7".parse().unwrap();
    assert_eq!(tcp_connect(&client, SocketAddr::new(ip, 80)).await.map(drop), Ok(()));
    // A file gets worse, another one better, while the agent runs.
    write("nonsense.yaml", "kind: [");
    write("good.yaml", &good(8000));
    until("the changed port", async || tcp_connect(&client, SocketAddr::new(ip, 8000)).await.is_ok()).await;
    assert_eq!(tcp_connect(&client, SocketAddr::new(ip, 80)).await.err(), Some(NetError::Refused));
    write("good.yaml", "kind: [");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(agent.exit_status(), None, "{}", agent.log());
    assert!(agent.log().contains("broken.yaml"), "the broken file is named in the log:\n{}", agent.log());
}
