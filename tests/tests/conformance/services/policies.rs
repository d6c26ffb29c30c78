//! `internalTrafficPolicy: Local`.

use crate::prelude::*;

/// The titles.
pub(crate) fn titles() -> Vec<Title> {
    vec![
        Title::new("should respect internalTrafficPolicy=Local Pod to Pod", pod_to_pod).each_family(),
        Title::new("should respect internalTrafficPolicy=Local Pod (hostNetwork: true) to Pod", host_to_pod)
            .each_family(),
        Title::new(
            "should respect internalTrafficPolicy=Local Pod and Node, to Pod (hostNetwork: true)",
            all_to_host,
        )
        .each_family(),
    ]
}

/// One endpoint, on the first node; asked from the first node and from the second.
async fn local_only(
    case: &Case,
    service: &Svc,
    endpoint: &str,
    near: &[&Caller],
    far: &[&Caller],
) -> Result<()> {
    let (tcp, udp) = (service.cluster(80)?, service.cluster(81)?);
    for caller in near {
        case.comes_to_reach(caller, tcp, Protocol::Tcp, &[endpoint]).await?;
        case.comes_to_reach(caller, udp, Protocol::Udp, &[endpoint]).await?;
        case.stays("the local endpoint", 5, async || caller.hostname(tcp).await, is(endpoint)).await?;
        case.stays("the local endpoint", 5, async || caller.udp_hostname(udp).await, is(endpoint)).await?;
    }
    for caller in far {
        case.unreachable(caller, tcp, Protocol::Tcp).await?;
        case.unreachable(caller, udp, Protocol::Udp).await?;
    }
    // With the policy gone everybody reaches it.
    service.patch(json!({"internalTrafficPolicy": "Cluster"}))?;
    for caller in near.iter().chain(far) {
        case.comes_to_reach(caller, tcp, Protocol::Tcp, &[endpoint]).await?;
    }
    service.patch(json!({"internalTrafficPolicy": "Local"}))?;
    for caller in far {
        case.unreachable(caller, tcp, Protocol::Tcp).await?;
    }
    Ok(())
}

async fn pod_to_pod(case: Case) -> Result<()> {
    let service = case.service("web", json!({"internalTrafficPolicy": "Local"}))?;
    let endpoint = case.backend("web", 0).await?;
    let (near, far) = (case.pod("near", 0).await?, case.pod("far", 1).await?);
    let to = service.cluster(80)?;
    case.comes_to_reach(&near, to, Protocol::Tcp, &[endpoint.name()]).await?;
    // Dropped, not refused: upstream's proxies do so, and a load balancer in front must not take it for an answer (S-22).
    case.silent("a pod of another node", 5, async || far.connect(to).await).await?;
    local_only(&case, &service, endpoint.name(), &[&near], &[&far]).await
}

async fn host_to_pod(case: Case) -> Result<()> {
    let service = case.service("web", json!({"internalTrafficPolicy": "Local"}))?;
    let endpoint = case.backend("web", 0).await?;
    local_only(&case, &service, endpoint.name(), &[&case.host(0)], &[&case.host(1)]).await
}

async fn all_to_host(case: Case) -> Result<()> {
    let endpoint = case.host_pod("server", 0, json!({"app": "web"})).await?;
    let ports = json!([
        {"name": "http", "port": 80, "targetPort": endpoint.http, "protocol": "TCP"},
        {"name": "udp", "port": 81, "targetPort": endpoint.udp, "protocol": "UDP"},
    ]);
    let service = case.service("web", json!({"internalTrafficPolicy": "Local", "ports": ports}))?;
    let (near, far) = (case.pod("near", 0).await?, case.pod("far", 1).await?);
    local_only(&case, &service, endpoint.name(), &[&near, &case.host(0)], &[&far, &case.host(1)]).await
}
