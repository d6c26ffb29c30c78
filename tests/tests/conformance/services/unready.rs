//! `publishNotReadyAddresses`.

use crate::prelude::*;

/// The titles.
pub(crate) fn titles() -> Vec<Title> {
    vec![
        Title::new("should create endpoints for unready pods", unready_pods),
        Title::new(
            "should be able to connect to terminating and unready endpoints if PublishNotReadyAddresses is true",
            published,
        )
        .each_family(),
        Title::new(
            "should not be able to connect to terminating and unready endpoints if PublishNotReadyAddresses is false",
            not_published,
        )
        .each_family(),
    ]
}

async fn unready_pods(case: Case) -> Result<()> {
    let service = case.service("web", json!({"publishNotReadyAddresses": true}))?;
    let pod = case.lingering_backend("web", 1).await?;
    case.set_ready(pod.name(), false)?;
    let client = case.pod("client", 0).await?;
    let to = service.cluster(80)?;
    case.comes_to_reach(&client, to, Protocol::Tcp, &[pod.name()]).await?;
    service.patch(json!({"publishNotReadyAddresses": false}))?;
    case.refuses(&client, to, Protocol::Tcp).await?;
    service.patch(json!({"publishNotReadyAddresses": true}))?;
    case.comes_to_reach(&client, to, Protocol::Tcp, &[pod.name()]).await?;
    // Unready and terminating.
    case.terminate(&pod)?;
    case.stays("the terminating pod", 10, async || client.hostname(to).await, is(pod.name())).await?;
    case.delete_pod(pod.name(), Duration::ZERO)?;
    case.refuses(&client, to, Protocol::Tcp).await
}

/// Where a Service with node ports is asked: its cluster IP, and two nodes, one with and one without endpoint.
fn places(case: &Case, service: &Svc) -> Result<[SocketAddr; 3]> {
    Ok([service.cluster(80)?, service.node(case.node_ip(0)?, 80)?, service.node(case.node_ip(1)?, 80)?])
}

async fn published(case: Case) -> Result<()> {
    let service = case.service("web", json!({"type": "NodePort", "publishNotReadyAddresses": true}))?;
    let pod = case.lingering_backend("web", 0).await?;
    let clients = [case.pod("client-0", 0).await?, case.pod("client-1", 1).await?];
    case.set_ready(pod.name(), false)?;
    case.terminate(&pod)?;
    for client in &clients {
        for to in places(&case, &service)? {
            case.comes_to_reach(client, to, Protocol::Tcp, &[pod.name()]).await?;
            case.stays("the unready pod", 5, async || client.hostname(to).await, is(pod.name())).await?;
        }
    }
    Ok(())
}

async fn not_published(case: Case) -> Result<()> {
    let service = case.service("web", json!({"type": "NodePort", "publishNotReadyAddresses": false}))?;
    let pod = case.lingering_backend("web", 0).await?;
    let clients = [case.pod("client-0", 0).await?, case.pod("client-1", 1).await?];
    for client in &clients {
        for to in places(&case, &service)? {
            case.comes_to_reach(client, to, Protocol::Tcp, &[pod.name()]).await?;
        }
    }
    case.set_ready(pod.name(), false)?;
    case.terminate(&pod)?;
    for client in &clients {
        for to in places(&case, &service)? {
            case.unreachable(client, to, Protocol::Tcp).await?;
            case.refuses(client, to, Protocol::Tcp).await?;
        }
    }
    Ok(())
}
