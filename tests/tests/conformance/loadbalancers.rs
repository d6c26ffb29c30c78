//! `test/e2e/network/loadbalancer.go`: "LoadBalancers" and "LoadBalancers ExternalTrafficPolicy: Local". What a cloud does
//! upstream, the titles do themselves: they hand out the address, and hosts outside route it to a node.

#[path = "loadbalancers/local.rs"]
mod local;
#[path = "loadbalancers/rolling.rs"]
mod rolling;
#[path = "loadbalancers/types.rs"]
mod types;

use crate::{
    conntrack::{Flow, server_cycles},
    prelude::*,
    services::affinity::{spreads, sticks},
};

/// The titles.
pub(crate) fn groups() -> Vec<Group> {
    let mut titles = types::titles();
    titles.extend([
        Title::new("should only allow access from service loadbalancer source ranges", source_ranges)
            .each_family(),
        Title::new(
            "should have session affinity work for LoadBalancer service with Local traffic policy",
            |case| affinity_works(case, "Local"),
        )
        .each_family(),
        Title::new(
            "should be able to switch session affinity for LoadBalancer service with Local traffic policy",
            |case| affinity_switches(case, "Local"),
        )
        .each_family(),
        Title::new(
            "should have session affinity work for LoadBalancer service with Cluster traffic policy",
            |case| affinity_works(case, "Cluster"),
        )
        .each_family(),
        Title::new(
            "should be able to switch session affinity for LoadBalancer service with Cluster traffic policy",
            |case| affinity_switches(case, "Cluster"),
        )
        .each_family(),
        Title::new(
            "should be able to preserve UDP traffic when server pod cycles for a LoadBalancer service on different \
             nodes",
            |case| server_pod_cycles(case, [0, 1]),
        )
        .each_family(),
        Title::new(
            "should be able to preserve UDP traffic when server pod cycles for a LoadBalancer service on the same \
             nodes",
            |case| server_pod_cycles(case, [1, 1]),
        )
        .each_family(),
    ]);
    titles.extend(rolling::titles());
    vec![
        Group::new("loadbalancer.go", "LoadBalancers", titles).outside(),
        Group::new("loadbalancer.go", "LoadBalancers ExternalTrafficPolicy: Local", local::titles())
            .outside(),
    ]
}

/// A Service `web` of type LoadBalancer with an address that hosts outside route to this node.
fn balanced(case: &Case, node: usize, mut spec: Value) -> Result<(Svc, IpAddr)> {
    spec["type"] = "LoadBalancer".into();
    let (service, vip) = (case.service("web", spec)?, case.routed_address(node));
    service.ingress(&[vip])?;
    Ok((service, vip))
}

/// The range with this one address.
fn only(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

async fn source_ranges(case: Case) -> Result<()> {
    let (service, vip) = balanced(&case, 0, json!({}))?;
    let (backend, to) = (case.backend("web", 1).await?, SocketAddr::new(vip, 80));
    // The pods sit on the node without the endpoint and on the one with it; processes of both nodes.
    let (first, second) = (case.pod("accept", 2).await?, case.pod("drop", 1).await?);
    let (outside, other) = (case.outside(0), case.outside(1));
    let callers = [
        first.caller().clone(),
        second.caller().clone(),
        outside.clone(),
        other.clone(),
        case.host(0),
        case.host(1),
    ];
    let expect = async |allowed: [bool; 6]| {
        for (caller, allowed) in callers.iter().zip(allowed) {
            if allowed {
                case.comes_to_reach(caller, to, Protocol::Tcp, &[backend.name()]).await?;
                case.comes_to_reach(caller, SocketAddr::new(vip, 81), Protocol::Udp, &[backend.name()])
                    .await?;
            } else {
                case.unreachable(caller, to, Protocol::Tcp).await?;
                case.unreachable(caller, SocketAddr::new(vip, 81), Protocol::Udp).await?;
            }
        }
        anyhow::Ok(())
    };
    expect([true; 6]).await?;
    let ranges = |list: &[IpAddr]| json!({"loadBalancerSourceRanges": list.iter().map(|ip| only(*ip)).collect::<Vec<_>>()});
    service.patch(ranges(&[first.ip(), case.outside_ip(0)?]))?;
    expect([true, false, true, false, false, false]).await?;
    // Neither the node port nor the cluster IP is subject to it (S-34).
    let node_port = service.node(case.node_ip(0)?, 80)?;
    case.reaches(&other, node_port, Protocol::Tcp, &[backend.name()]).await?;
    case.reaches(&second, service.cluster(80)?, Protocol::Tcp, &[backend.name()]).await?;
    service.patch(ranges(&[second.ip(), case.outside_ip(1)?]))?;
    expect([false, true, false, true, false, false]).await?;
    // A range with a node's address opens it to that node's processes, and to nobody else.
    service.patch(ranges(&[case.node_ip(0)?]))?;
    expect([false, false, false, false, true, false]).await?;
    service.patch(json!({"loadBalancerSourceRanges": null}))?;
    expect([true; 6]).await
}

/// Three pods, all where the policy lets the address reach them, and the Service in front.
async fn affine(case: &Case, policy: &str, affinity: &str) -> Result<(Svc, SocketAddr, Vec<String>)> {
    let mut names = Vec::new();
    for node in 0..3 {
        let pod = case.backend("web", if policy == "Local" { 0 } else { node }).await?;
        names.push(pod.name().to_owned());
    }
    let spec = json!({"externalTrafficPolicy": policy, "sessionAffinity": affinity});
    let (service, vip) = balanced(case, 0, spec)?;
    let (to, outside) = (SocketAddr::new(vip, 80), case.outside(0));
    case.visible("the first answer", async || outside.hostname(to).await, Result::is_ok).await?;
    Ok((service, to, names))
}

async fn affinity_works(case: Case, policy: &str) -> Result<()> {
    let (service, to, names) = affine(&case, policy, "ClientIP").await?;
    let (outside, other) = (case.outside(0), case.outside(1));
    let chosen = sticks(&case, &outside, to).await?;
    sticks(&case, &other, to).await?;
    // Affinity is the Service port's: the node port leads to the same pod (S-40).
    let node_port = service.node(case.node_ip(0)?, 80)?;
    case.stays("the node port", 5, async || outside.hostname(node_port).await, is(&chosen)).await?;
    // An endpoint that is not ready any more is not clung to (kubernetes#110302), nor returned to in haste.
    case.set_ready(&chosen, false)?;
    let others: Vec<&str> = names.iter().map(String::as_str).filter(|name| *name != chosen).collect();
    case.visible("another pod", async || outside.hostname(to).await, any_of(&others)).await?;
    let second = sticks(&case, &outside, to).await?;
    ensure!(second != chosen, "{chosen} is not ready");
    Ok(())
}

async fn affinity_switches(case: Case, policy: &str) -> Result<()> {
    let (service, to, _) = affine(&case, policy, "None").await?;
    let outside = case.outside(0);
    spreads(&case, &outside, to).await?;
    for _ in 0..2 {
        service.patch(json!({"sessionAffinity": "ClientIP"}))?;
        sticks(&case, &outside, to).await?;
        service.patch(json!({"sessionAffinity": "None"}))?;
        spreads(&case, &outside, to).await?;
    }
    Ok(())
}

async fn server_pod_cycles(case: Case, nodes: [usize; 2]) -> Result<()> {
    let (_service, vip) = balanced(&case, 0, json!({}))?;
    let to = SocketAddr::new(vip, 81);
    let flows = [Flow::open(&case.outside(0), to).await?, Flow::open(&case.outside(1), to).await?];
    server_cycles(&case, &flows, nodes).await.map(drop)
}
