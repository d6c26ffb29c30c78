//! The type changes between ExternalName and the types that have a proxy.

use crate::prelude::*;

/// The titles.
pub(crate) fn titles() -> Vec<Title> {
    vec![
        Title::new("should be able to change the type from ExternalName to ClusterIP", to_cluster_ip),
        Title::new("should be able to change the type from ExternalName to NodePort", to_node_port),
        Title::new("should be able to change the type from ClusterIP to ExternalName", from_cluster_ip),
        Title::new("should be able to change the type from NodePort to ExternalName", from_node_port),
    ]
}

/// What a Service of type ExternalName looks like.
fn external_name() -> Value {
    json!({
        "type": "ExternalName", "externalName": "clusterip.example.com", "ports": null, "selector": null,
        "ipFamilyPolicy": null,
    })
}

/// What has to change for it to be of another type.
fn proxied(kind: &str) -> Value {
    json!({
        "type": kind, "externalName": null, "selector": {"app": "web"}, "ipFamilyPolicy": "PreferDualStack",
        "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
    })
}

/// What turns a Service of another type into one of type ExternalName: its addresses go.
fn away() -> Value {
    let mut patch = external_name();
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "internalTrafficPolicy", "externalTrafficPolicy"] {
        patch[field] = Value::Null;
    }
    patch
}

async fn to_cluster_ip(case: Case) -> Result<()> {
    let service = case.service("web", external_name())?;
    ensure!(service.cluster_ips()?.is_empty(), "an ExternalName Service has addresses");
    let pods = [case.backend("web", 0).await?, case.backend("web", 1).await?];
    let client = case.pod("client", 0).await?;
    service.patch(proxied("ClusterIP"))?;
    let names = pods.each_ref().map(PodClient::name);
    case.comes_to_reach(&client, service.cluster(80)?, Protocol::Tcp, &names).await?;
    case.comes_to_reach(&case.host(1), service.cluster(80)?, Protocol::Tcp, &names).await
}

async fn to_node_port(case: Case) -> Result<()> {
    let service = case.service("web", external_name())?;
    let pods = [case.backend("web", 0).await?, case.backend("web", 1).await?];
    let client = case.pod("client", 0).await?;
    service.patch(proxied("NodePort"))?;
    let names = pods.each_ref().map(PodClient::name);
    case.comes_to_reach(&client, service.cluster(80)?, Protocol::Tcp, &names).await?;
    for node in 0..3 {
        let to = service.node(case.node_ip(node)?, 80)?;
        case.comes_to_reach(&client, to, Protocol::Tcp, &names).await?;
        case.comes_to_reach(&case.outside(0), to, Protocol::Tcp, &names).await?;
    }
    Ok(())
}

async fn from_cluster_ip(case: Case) -> Result<()> {
    let service = case.service("web", json!({}))?;
    let pod = case.backend("web", 1).await?;
    let client = case.pod("client", 0).await?;
    let to = service.cluster(80)?;
    case.comes_to_reach(&client, to, Protocol::Tcp, &[pod.name()]).await?;
    service.patch(away())?;
    ensure!(service.cluster_ips()?.is_empty(), "the ExternalName Service kept its addresses");
    case.unreachable(&client, to, Protocol::Tcp).await?;
    case.unreachable(&case.host(0), to, Protocol::Tcp).await
}

async fn from_node_port(case: Case) -> Result<()> {
    let service = case.service("web", json!({"type": "NodePort"}))?;
    let pod = case.backend("web", 1).await?;
    let client = case.pod("client", 0).await?;
    let (to, node) = (service.cluster(80)?, service.node(case.node_ip(1)?, 80)?);
    case.comes_to_reach(&client, to, Protocol::Tcp, &[pod.name()]).await?;
    case.comes_to_reach(&client, node, Protocol::Tcp, &[pod.name()]).await?;
    case.comes_to_reach(&case.outside(0), node, Protocol::Tcp, &[pod.name()]).await?;
    service.patch(away())?;
    for caller in [client.caller(), &case.outside(0)] {
        case.unreachable(caller, node, Protocol::Tcp).await?;
    }
    case.unreachable(&client, to, Protocol::Tcp).await
}
