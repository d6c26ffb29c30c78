//! Node ports at the loopback address, for processes of the node: `127.0.0.1`, and `::1` as well.

use std::net::{Ipv4Addr, Ipv6Addr};

use lb_tests::workload::registry;

use crate::{
    prelude::*,
    services::affinity::{spreads, sticks},
};

/// The titles.
pub(super) fn titles() -> Vec<Title> {
    vec![
        Title::new("should proxy localhost NodePort traffic to backends across nodes", across_nodes)
            .each_family(),
        Title::new("should honor sessionAffinity=ClientIP for localhost NodePort", affinity).each_family(),
        Title::new(
            "should let a node pull an image from a registry exposed via localhost NodePort",
            registry_pull,
        )
        .each_family(),
    ]
}

fn loopback(case: &Case, node_port: u16) -> SocketAddr {
    let ip = match case.family() {
        IpFamily::V4 => Ipv4Addr::LOCALHOST.into(),
        IpFamily::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, node_port)
}

async fn across_nodes(case: Case) -> Result<()> {
    let service = case.service("web", json!({"type": "NodePort"}))?;
    let pods = [case.backend("web", 0).await?, case.backend("web", 1).await?];
    let names = pods.each_ref().map(PodClient::name);
    let host = case.host(0);
    for protocol in Protocol::BOTH {
        let port = if protocol == Protocol::Tcp { 80 } else { 81 };
        let to = loopback(&case, service.node_port(port, protocol)?);
        case.comes_to_reach(&host, to, protocol, &names).await?;
    }
    let to = loopback(&case, service.node_port(80, Protocol::Tcp)?);
    spreads(&case, &host, to).await?;
    // A pod's loopback is its own.
    let pod = case.pod("client", 0).await?;
    case.stays("a pod", 3, async || pod.connect(to).await, refused).await
}

async fn affinity(case: Case) -> Result<()> {
    let spec = json!({
        "type": "NodePort", "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10_800}},
    });
    let service = case.service("web", spec)?;
    for _ in 0..3 {
        case.backend("web", 0).await?;
    }
    let (to, host) = (loopback(&case, service.node_port(80, Protocol::Tcp)?), case.host(0));
    case.visible("the first answer", async || host.hostname(to).await, Result::is_ok).await?;
    sticks(&case, &host, to).await.map(drop)
}

async fn registry_pull(case: Case) -> Result<()> {
    let spec = json!({"containers": [{
        "name": "registry", "image": "registry.k8s.io/e2e-test-images/agnhost:2.53",
        "args": ["fake-registry-server"],
    }]});
    let labels = json!({"app": "registry"});
    let _server = case.pod_with("localhost-nodeport-registry", 1, labels, spec).await?;
    let port = json!([{"name": "http", "port": 5000, "targetPort": 5000, "protocol": "TCP"}]);
    let service = case.service("registry", json!({"type": "NodePort", "ports": port}))?;
    let (to, host) = (loopback(&case, service.node_port(5000, Protocol::Tcp)?), case.host(0));
    let get = async |path: String| Ok::<_, NetError>(host.http(to, &path).await?.body);
    case.visible("the registry", async || get("/v2/".to_owned()).await, is("{}")).await?;
    // As a container runtime pulls: the manifest, then each layer it names.
    let manifest: Value = serde_json::from_str(&get("/v2/pause/manifests/testing".to_owned()).await?)?;
    let layers = manifest["layers"].as_array().context("a manifest without layers")?;
    ensure!(layers.len() == registry::LAYERS, "{} layers", layers.len());
    for (number, entry) in layers.iter().enumerate() {
        let digest = entry["digest"].as_str().context("a layer without digest")?;
        let body = get(format!("/v2/pause/blobs/{digest}")).await?;
        ensure!(
            body == registry::layer(number),
            "layer {number}: {} bytes, not those of the image",
            body.len()
        );
    }
    Ok(())
}
