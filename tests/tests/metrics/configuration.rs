//! kube-proxy's configuration file, from the file to what is in effect.

use lb_tests::lab::{Family, Node};
use serde_json::{Value, json};

use crate::{SECONDS, builder, told, until};

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

async fn configuration(node: &Node, port: u16) -> Value {
    let told = told(node, port, "/configz").await;
    assert_eq!(told.status, 200);
    serde_json::from_str(&told.body).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_63_kube_proxys_file_is_honoured_and_what_is_in_effect_is_served() {
    let cluster = builder(Family::V4).without_agents().start().await.unwrap();
    let node = cluster.node(0).clone();
    let mut options = cluster.agent_options(&node).unwrap();
    // What the file is to say instead.
    let kubeconfig = cluster.lab().state_dir().join("n1.kubeconfig");
    options
        .args
        .retain(|argument| !argument.starts_with("--kubeconfig") && !argument.starts_with("--node-name"));
    let file = cluster.lab().state_dir().join("kube-proxy.yaml");
    let text = format!(
        "{HEAD}clientConnection: {{kubeconfig: {}}}\nhostnameOverride: {}\nmetricsBindAddress: 0.0.0.0:9999\n\
         healthzBindAddress: 127.0.0.1\nmode: nftables\nnodePortAddresses: [primary]\noomScoreAdj: 17\n\
         conntrack: {{udpTimeout: 45s, maxPerCore: null}}\niptables: {{masqueradeBit: 14, minSyncPeriod: 10s}}\n\
         ipvs: {{strictARP: true}}\nclusterCIDR: 10.244.0.0/16\n",
        kubeconfig.display(),
        node.name(),
    );
    std::fs::write(&file, text).unwrap();
    options.args.push(format!("--config={}", file.display()));
    options.args.push("--udp-stream-timeout=99".to_owned());
    let agent = node.start_agent(options).unwrap();
    agent.wait_ready().await.unwrap();

    let log = agent.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("mean nothing here")).collect();
    assert_eq!(warnings.len(), 1, "one warning:\n{log}");
    for field in ["iptables.masqueradeBit", "iptables.minSyncPeriod", "ipvs.strictARP", "clusterCIDR"] {
        assert!(warnings[0].contains(field), "{field}: {}", warnings[0]);
    }
    assert!(!warnings[0].contains("hostnameOverride"), "{}", warnings[0]);
    let effective =
        log.lines().find(|line| line.contains("configuration in effect")).expect("a line of the start");
    assert!(
        effective.contains("udp-timeout=45") && effective.contains("udp-stream-timeout=99"),
        "{effective}"
    );

    assert_eq!(told(&node, 9999, "/proxyMode").await.body, "ebpf");
    let configz = configuration(&node, 9999).await;
    let proxy = &configz["kubeproxy.config.k8s.io"];
    assert_eq!(proxy["kind"], "KubeProxyConfiguration");
    assert_eq!(proxy["hostnameOverride"], node.name());
    assert_eq!(proxy["nodePortAddresses"], json!(["primary"]));
    assert_eq!(proxy["healthzBindAddress"], "127.0.0.1:10256");
    assert_eq!(proxy["conntrack"]["udpTimeout"], "45s");
    assert_eq!(proxy["conntrack"]["udpStreamTimeout"], "99s");
    assert_eq!(proxy["oomScoreAdj"], 17);
    let flags = &configz["lb-agent"]["flags"];
    assert_eq!(flags["udp-timeout"], json!({"value": "45", "from": {"file": "conntrack.udpTimeout"}}));
    assert_eq!(flags["udp-stream-timeout"], json!({"value": "99", "from": "flag"}));
    assert_eq!(flags["forwarding"]["from"], "flag");
    assert_eq!(flags["attach"], json!({"value": "auto", "from": "default"}));
    assert_eq!(flags["cgroup"]["from"], "variable");
    assert_eq!(configz["lb-agent"]["fieldsWithoutMeaning"].as_array().unwrap().len(), 4);
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", agent.pid())).unwrap();
    assert_eq!(score.trim(), "17");
    // A file that changes: its log level counts at once, the rest at the next start.
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("udpTimeout: 45s", "udpTimeout: 46s") + "logging: {verbosity: 5}\n")
        .unwrap();
    until("the level is taken", async || agent.log().contains("log level taken")).await;
    assert_eq!(configuration(&node, 9999).await["lb-agent"]["knobs"]["log"], "debug");
    let waits = |log: String| {
        log.lines().any(|line| line.contains("when lb-agent starts again") && line.contains("--udp-timeout"))
    };
    assert!(waits(agent.log()), "{}", agent.log());
    // What is served is a file that would say the same.
    std::fs::write(&file, proxy.to_string()).unwrap();
    lb_agent::config::read(&file).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_63_a_file_with_a_mistake_ends_the_agent_with_the_path_of_the_field() {
    let cluster = builder(Family::V4).without_agents().start().await.unwrap();
    let node = cluster.node(0).clone();
    let file = cluster.lab().state_dir().join("kube-proxy.yaml");
    let config = format!("--config={}", file.display());
    for (text, told) in [
        (format!("{HEAD}iptables: {{masqueradBit: 14}}\n"), "iptables.masqueradBit is no field"),
        (format!("{HEAD}conntrack: {{udpTimeout: 45}}\n"), "conntrack.udpTimeout is 45; expected a duration"),
        (
            format!("{HEAD}nodePortAddresses: [10.0.0.0/99]\n"),
            "nodePortAddresses: invalid value '10.0.0.0/99'",
        ),
        ("kind: Service\napiVersion: v1\n".to_owned(), "expected `kind: KubeProxyConfiguration`"),
    ] {
        std::fs::write(&file, text).unwrap();
        let output = node.agent_command(&["run", &config], SECONDS).await.unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{error}");
        assert!(error.contains(told) && error.contains("kube-proxy.yaml"), "{error}");
    }
}
