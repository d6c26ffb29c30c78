//! Endpoints that terminate: the last resort of a Service, and no reason for a load balancer to send more.

use crate::prelude::*;

/// The titles.
pub(crate) fn titles() -> Vec<Title> {
    vec![
        Title::new(
            "should fail health check node port if there are only terminating endpoints",
            health_check,
        )
        .each_family(),
        Title::new(
            "should fallback to terminating endpoints when there are no ready endpoints with internalTrafficPolicy=Cluster",
            internal_cluster,
        )
        .each_family(),
        Title::new(
            "should fallback to local terminating endpoints when there are no ready endpoints with \
             internalTrafficPolicy=Local",
            internal_local,
        )
        .each_family(),
        Title::new(
            "should fallback to terminating endpoints when there are no ready endpoints with \
             externallTrafficPolicy=Cluster",
            external_cluster,
        )
        .each_family(),
        Title::new(
            "should fallback to local terminating endpoints when there are no ready endpoints with \
             externalTrafficPolicy=Local",
            external_local,
        )
        .each_family(),
    ]
}

/// The only endpoint, on the first node, in the service of `to`; it terminates from now on, and still serves.
async fn only_terminating(case: &Case, seen_by: &Caller, to: SocketAddr) -> Result<PodClient> {
    let pod = case.lingering_backend("web", 0).await?;
    case.comes_to_reach(seen_by, to, Protocol::Tcp, &[pod.name()]).await?;
    case.terminate(&pod)?;
    Ok(pod)
}

/// New connections reach this pod and no other, soon and from then on.
async fn settles(case: &Case, caller: &Caller, to: SocketAddr, pod: &str) -> Result<()> {
    case.comes_to_reach(caller, to, Protocol::Tcp, &[pod]).await?;
    case.stays("the only endpoint", 8, async || caller.hostname(to).await, is(pod)).await
}

async fn health_check(case: Case) -> Result<()> {
    let service = case.service("web", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}))?;
    let client = case.pod("client", 1).await?;
    let (near, far) = (case.node_ip(0)?, case.node_ip(1)?);
    let to = service.node(near, 80)?;
    let pod = case.lingering_backend("web", 0).await?;
    let health = SocketAddr::new(near, service.health_port()?);
    let elsewhere = SocketAddr::new(far, service.health_port()?);
    let status = |wanted: u16| move |told: &Result<_, NetError>| matches!(told, Ok(lb_tests::workload::Told { status, .. }) if *status == wanted);
    let outside = case.outside(0);
    for caller in [client.caller(), &outside] {
        case.comes_to_reach(caller, to, Protocol::Tcp, &[pod.name()]).await?;
        case.visible(
            "the health check says 200",
            async || caller.http(health, "/healthz").await,
            status(200),
        )
        .await?;
        case.visible(
            "the node without endpoint says 503",
            async || caller.http(elsewhere, "/").await,
            status(503),
        )
        .await?;
    }
    case.terminate(&pod)?;
    for caller in [client.caller(), &outside] {
        case.visible(
            "the health check says 503",
            async || caller.http(health, "/healthz").await,
            status(503),
        )
        .await?;
        // And the node port still serves: what is under way at the balancer is not lost.
        settles(&case, caller, to, pod.name()).await?;
    }
    Ok(())
}

async fn internal_cluster(case: Case) -> Result<()> {
    let service = case.service("web", json!({}))?;
    let (near, far) = (case.pod("near", 0).await?, case.pod("far", 1).await?);
    let to = service.cluster(80)?;
    let pod = only_terminating(&case, &far, to).await?;
    for caller in [near.caller(), far.caller(), &case.host(0), &case.host(1)] {
        settles(&case, caller, to, pod.name()).await?;
    }
    // A ready one ends the fallback.
    let fresh = case.backend("web", 1).await?;
    for caller in [near.caller(), far.caller(), &case.host(0), &case.host(1)] {
        case.comes_to_reach(caller, to, Protocol::Tcp, &[fresh.name()]).await?;
        settles(&case, caller, to, fresh.name()).await?;
    }
    Ok(())
}

async fn internal_local(case: Case) -> Result<()> {
    let service = case.service("web", json!({"internalTrafficPolicy": "Local"}))?;
    let (near, far) = (case.pod("near", 0).await?, case.pod("far", 1).await?);
    let to = service.cluster(80)?;
    let pod = only_terminating(&case, &near, to).await?;
    for caller in [near.caller(), &case.host(0)] {
        settles(&case, caller, to, pod.name()).await?;
    }
    for caller in [far.caller(), &case.host(1)] {
        case.unreachable(caller, to, Protocol::Tcp).await?;
    }
    // A ready one on another node changes nothing here, and serves there.
    let fresh = case.backend("web", 1).await?;
    case.comes_to_reach(&far, to, Protocol::Tcp, &[fresh.name()]).await?;
    settles(&case, &near, to, pod.name()).await
}

async fn external_cluster(case: Case) -> Result<()> {
    let service = case.service("web", json!({"type": "NodePort"}))?;
    let (near, far) = (case.pod("near", 0).await?, case.pod("far", 1).await?);
    let nodes = [service.node(case.node_ip(0)?, 80)?, service.node(case.node_ip(1)?, 80)?];
    let pod = only_terminating(&case, &far, nodes[1]).await?;
    for to in nodes {
        for caller in [near.caller(), far.caller(), &case.host(0), &case.host(1), &case.outside(0)] {
            settles(&case, caller, to, pod.name()).await?;
        }
    }
    Ok(())
}

async fn external_local(case: Case) -> Result<()> {
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
    let service = case.service("web", spec)?;
    let outside = case.outside(0);
    let (near, far) = (service.node(case.node_ip(0)?, 80)?, service.node(case.node_ip(1)?, 80)?);
    let pod = only_terminating(&case, &outside, near).await?;
    case.stays(
        "the node of the terminating endpoint",
        10,
        async || outside.hostname(near).await,
        is(pod.name()),
    )
    .await?;
    // A client inside is not bound by the policy (S-33): its own node's node port leads it to any endpoint.
    let inside = case.pod("inside", 1).await?;
    settles(&case, &inside, far, pod.name()).await?;
    // The other node has none, and says nothing.
    case.silent("the node without endpoint", 5, async || outside.connect(far).await).await?;
    // A ready endpoint on the other node does not help here: the terminating one goes on.
    let fresh = case.backend("web", 1).await?;
    case.comes_to_reach(&outside, far, Protocol::Tcp, &[fresh.name()]).await?;
    case.stays(
        "the node of the terminating endpoint",
        5,
        async || outside.hostname(near).await,
        is(pod.name()),
    )
    .await
}
