//! Labels that take a Service away from this proxy, and Services without endpoints.

use futures::{FutureExt, future::try_join_all};

use crate::prelude::*;

/// The titles.
pub(crate) fn titles() -> Vec<Title> {
    vec![
        Title::new("should implement service.kubernetes.io/service-proxy-name", |case| {
            hidden_by(case, "service.kubernetes.io/service-proxy-name", "foo-bar")
        }),
        Title::new("should implement service.kubernetes.io/headless", |case| {
            hidden_by(case, "service.kubernetes.io/headless", "")
        }),
        Title::new("should be rejected when no endpoints exist", no_endpoints).each_family(),
        Title::new("should be rejected for evicted pods (no endpoints exist)", evicted).each_family(),
    ]
}

/// Three Services in front of three pods: one never hidden, one hidden and shown again, one hidden from the beginning.
async fn hidden_by(case: Case, label: &str, value: &str) -> Result<()> {
    let client = case.pod("client", 0).await?;
    let host = case.host(1);
    let mut names = Vec::new();
    for node in 0..3 {
        names.push(case.backend("web", node).await?.name().to_owned());
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let selected = || json!({"selector": {"app": "web"}});
    let (toggled, steady) = (case.service("toggled", selected())?, case.service("steady", selected())?);
    let hidden = case.service("hidden", json!({"selector": {"app": "hidden"}}))?;
    hidden.patch_object(
        &json!({"metadata": {"labels": {label: value}}, "spec": {"selector": {"app": "web"}}}),
    )?;
    let (toggled_at, steady_at, hidden_at) = (toggled.cluster(80)?, steady.cluster(80)?, hidden.cluster(80)?);
    let callers = [client.caller(), &host];
    for caller in callers {
        case.comes_to_reach(caller, toggled_at, Protocol::Tcp, &names).await?;
        case.comes_to_reach(caller, steady_at, Protocol::Tcp, &names).await?;
        case.unreachable(caller, hidden_at, Protocol::Tcp).await?;
    }
    toggled.label(json!({label: value}))?;
    for caller in callers {
        case.unreachable(caller, toggled_at, Protocol::Tcp).await?;
        case.reaches(caller, steady_at, Protocol::Tcp, &names).await?;
    }
    toggled.label(json!({label: null}))?;
    for caller in callers {
        case.comes_to_reach(caller, toggled_at, Protocol::Tcp, &names).await?;
        case.reaches(caller, steady_at, Protocol::Tcp, &names).await?;
        case.unreachable(caller, hidden_at, Protocol::Tcp).await?;
    }
    Ok(())
}

/// Where a Service with a node port and an external IP is refused, by clients of every kind.
async fn is_refused(case: &Case, service: &Svc, external: IpAddr) -> Result<()> {
    let client = case.pod("client", 0).await?;
    let node = case.node_ip(1)?;
    let tcp = [service.cluster(80)?, service.node(node, 80)?, SocketAddr::new(external, 80)];
    let udp = [service.cluster(81)?, service.node_udp(node, 81)?, SocketAddr::new(external, 81)];
    let callers = [client.caller().clone(), case.host(0), case.host(1), case.outside(0)];
    let looks = callers.iter().flat_map(|caller| {
        let tcp = tcp.iter().map(move |to| case.refuses(caller, *to, Protocol::Tcp));
        let udp = udp.iter().map(move |to| case.refuses(caller, *to, Protocol::Udp));
        tcp.map(FutureExt::boxed_local).chain(udp.map(FutureExt::boxed_local))
    });
    // At once: the refusal of an IPv6 connection takes a second to be heeded.
    try_join_all(looks).await.map(drop)
}

async fn no_endpoints(case: Case) -> Result<()> {
    let external = case.routed_address(0);
    let service = case.service("web", json!({"type": "NodePort", "externalIPs": [external]}))?;
    is_refused(&case, &service, external).await
}

async fn evicted(case: Case) -> Result<()> {
    let external = case.routed_address(0);
    let service = case.service("web", json!({"type": "NodePort", "externalIPs": [external]}))?;
    let pod = case.lingering_backend("web", 1).await?;
    let near = case.pod("near", 0).await?;
    case.comes_to_reach(&near, service.cluster(80)?, Protocol::Tcp, &[pod.name()]).await?;
    // What a kubelet writes when it evicts: the pod stays, failed, and is no endpoint any more.
    let status = json!({"status": {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource"}});
    case.api().patch_status_value("pods", case.namespace(), pod.name(), &status)?;
    is_refused(&case, &service, external).await
}
