//! `lb-agent status` and `lb-agent support-bundle` on nodes that are well and that are not.

use std::collections::BTreeMap;

use lb_tests::{
    cluster::{Cluster, Forwarding},
    lab::{Caller, Family, Node, Shape},
    workload::NetError,
};
use serde_json::{Value, json};

use crate::common::{SECONDS, service, simple, until};

/// What a node says, and whether it is well.
async fn status(cluster: &Cluster, node: &Node, more: &[&str]) -> (bool, Value) {
    let root = format!("--bpf-root={}", cluster.bpf_root(node).display());
    let args = [&["status", "-o", "json", &root][..], more].concat();
    let output = node.agent_command(&args, SECONDS).await.unwrap();
    let code = output.status.code();
    let told: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(code, Some(if told["well"] == true { 0 } else { 1 }), "{told:#}");
    (told["well"] == true, told)
}

fn problems(told: &Value, grave: bool) -> String {
    let problems = told["problems"].as_array().unwrap().iter();
    let says =
        problems.filter(|problem| problem["grave"] == grave).map(|problem| problem["says"].to_string());
    says.collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_well_says_so_and_one_that_is_not_says_what_is_wrong() {
    let mut cluster = simple(Family::Dual, Shape::Routed, Forwarding::Redirect, 2).await;
    cluster.api().create(&service("nobody", json!({"app": "nobody"}))).unwrap();
    let client = cluster.netexec_pod("default", "client", cluster.node(0), &json!({})).await.unwrap();
    cluster.settle("default").await.unwrap();
    let node = cluster.node(0).clone();
    let (well, told) = status(&cluster, &node, &["--window=0.1"]).await;
    assert!(well && told["problems"] == json!([]), "{told:#}");
    let agent = &told["agent"];
    assert_eq!((&agent["running"], &agent["health"]), (&json!(true), &json!("healthy")), "{told:#}");
    assert_eq!(agent["process"], cluster.agents()[0].pid(), "{told:#}");
    assert_eq!((&told["forwarding"], told["sockets"].as_array().unwrap().len()), (&json!("redirect"), 9));
    let devices = told["devices"].as_array().unwrap();
    assert!(devices.len() >= 4 && devices.iter().all(|device| device["missing"] == json!([])), "{told:#}");
    let services = told["services"].clone();
    assert!(services["refusing"].as_u64().unwrap() >= 2, "{told:#}");

    // A Service without endpoints is no fault of the node's.
    let to = (cluster.cluster_ip("default", "nobody").unwrap(), 80).into();
    let caller = Caller::in_pod(client.pod().unwrap()).unwrap();
    let refused = async {
        for _ in 0..20 {
            assert_eq!(caller.connect(to).await.err(), Some(NetError::Refused));
            tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        }
    };
    let ((well, told), ()) = tokio::join!(status(&cluster, &node, &["--window=2"]), refused);
    assert!(well && problems(&told, false).contains("(no_endpoint)"), "{told:#}");

    // Nobody follows, and somebody takes a program away.
    cluster.agent(0).sigkill();
    let device = client.pod().unwrap().host_device().clone();
    let pin = cluster.bpf_root(&node).join("links").join(format!("{}-from_pod", device.index));
    std::fs::remove_file(pin).unwrap();
    until("the link to go", async || {
        let (well, told) = status(&cluster, &node, &["--window=0"]).await;
        let grave = problems(&told, true);
        !well && grave.contains("no lb-agent runs") && grave.contains(&format!("{} (from_pod)", device.name))
    })
    .await;
    let (_, told) = status(&cluster, &node, &["--window=0"]).await;
    assert_eq!(told["services"], services, "tables stay: {told:#}");
    cluster.agent(0).restart().unwrap();
    cluster.agents_ready().await.unwrap();
    until("the node to be well again", async || status(&cluster, &node, &["--window=0"]).await.0).await;

    cluster.agent(0).sigterm().await.unwrap();
    let root = format!("--bpf-root={}", cluster.bpf_root(&node).display());
    let cleaned = node.agent_command(&["cleanup", &root], SECONDS).await.unwrap();
    assert!(cleaned.status.success());
    let (well, told) = status(&cluster, &node, &[]).await;
    let grave = problems(&told, true);
    assert!(
        !well && grave.contains("no program is attached") && grave.contains("no tables below"),
        "{told:#}"
    );
    let text = node.agent_command(&["status", &root], SECONDS).await.unwrap();
    assert!(String::from_utf8_lossy(&text.stdout).starts_with("NOT WELL: 3 problems\n"), "{text:?}");
}

/// The files of a bundle, as `tar` unpacks them.
async fn bundle(cluster: &Cluster, node: &Node, more: &[&str]) -> (Value, BTreeMap<String, Vec<u8>>) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bundle.tar.gz").display().to_string();
    let root = format!("--bpf-root={}", cluster.bpf_root(node).display());
    let args = [&["support-bundle", "-o", "json", "--window=0", "--file", &file, &root][..], more].concat();
    let output = node.agent_command(&args, SECONDS * 4).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = serde_json::from_slice(&output.stdout).unwrap();
    let into = directory.path().display().to_string();
    let unpacked =
        node.exec(&["tar", "-xzf", &file, "-C", &into, "--strip-components=1"], &[], SECONDS).await.unwrap();
    assert!(unpacked.status.success(), "{}", String::from_utf8_lossy(&unpacked.stderr));
    std::fs::remove_file(&file).unwrap();
    let mut files = BTreeMap::new();
    let mut directories = vec![directory.path().to_owned()];
    while let Some(at) = directories.pop() {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let name = path.strip_prefix(directory.path()).unwrap().display().to_string();
                files.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    (told, files)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_has_what_a_report_needs_and_no_secrets() {
    let mut cluster = simple(Family::Dual, Shape::Bridged, Forwarding::Stack, 1).await;
    let node = cluster.node(0).clone();
    let log = cluster.agents()[0].log_path().display().to_string();
    let (told, files) = bundle(&cluster, &node, &["--add", &log]).await;
    assert_eq!(told["missing"], json!([]), "{told:#}");
    let readme = String::from_utf8_lossy(&files["README.txt"]).into_owned();
    for (name, content) in &files {
        assert!(name == "README.txt" || readme.contains(name.as_str()), "{name} is not in the list");
        if name.ends_with(".json") {
            serde_json::from_slice::<Value>(content).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
    let json = |name: &str| serde_json::from_slice::<Value>(&files[name]).unwrap();
    let services = json("services.json").to_string();
    assert!(services.contains("default/web:http"), "{services}");
    assert!(
        json("status.json")["well"] == true
            && json("attached.json")["programs"].as_array().unwrap().len() > 10
    );
    assert!(String::from_utf8_lossy(&files["agent/metrics.txt"]).contains("kubeproxy_sync_proxy_rules"));
    assert!(!files[&format!("added/{}", log.rsplit('/').next().unwrap())].is_empty());
    // What the agent proves to the API server who it is with.
    let kubeconfig = cluster.lab().state_dir().join(format!("{}.kubeconfig", node.name()));
    let kubeconfig = std::fs::read_to_string(kubeconfig).unwrap();
    let secret = kubeconfig.lines().find_map(|line| line.trim().strip_prefix("token:")).unwrap().trim();
    let secret = secret.trim_matches('"');
    assert!(secret.len() > 8, "{kubeconfig}");
    for (name, content) in &files {
        assert!(!String::from_utf8_lossy(content).contains(secret), "{name} has the token");
    }
    // Without an agent and without tables there is less, and it says so.
    cluster.agent(0).sigterm().await.unwrap();
    let root = format!("--bpf-root={}", cluster.bpf_root(&node).display());
    assert!(node.agent_command(&["cleanup", &root], SECONDS).await.unwrap().status.success());
    let (told, files) = bundle(&cluster, &node, &[]).await;
    let missing = told["missing"].to_string();
    assert!(missing.contains("services.json") && missing.contains("agent/metrics.txt"), "{missing}");
    assert!(String::from_utf8_lossy(&files["README.txt"]).contains("MISSING: no tables below"));
    assert!(files.contains_key("check.json") && files.contains_key("devices.json"), "{:?}", files.keys());
}
