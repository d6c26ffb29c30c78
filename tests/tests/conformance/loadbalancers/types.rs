//! Type and ports of a Service change under its clients.

use crate::prelude::*;

/// The titles.
pub(super) fn titles() -> Vec<Title> {
    vec![
        Title::new("should be able to change the type and ports of a TCP service", |case| {
            type_and_ports(case, Protocol::Tcp)
        })
        .each_family(),
        Title::new("should be able to change the type and ports of a UDP service", |case| {
            type_and_ports(case, Protocol::Udp)
        })
        .each_family(),
        Title::new(
            "should be able to create LoadBalancer Service without NodePort and change it",
            without_node_port,
        )
        .each_family(),
    ]
}

/// The only port of a Service.
fn ports(protocol: Protocol, port: u16, node_port: Option<u16>) -> Value {
    let target = if protocol == Protocol::Tcp { 8080 } else { 8081 };
    let mut entry = json!({"name": "only", "port": port, "targetPort": target, "protocol": protocol.name()});
    if let Some(node_port) = node_port {
        entry["nodePort"] = node_port.into();
    }
    json!([entry])
}

/// Who asks: a pod, a process of a node, a host outside.
async fn callers(case: &Case) -> Result<Vec<Caller>> {
    Ok(vec![case.pod("client", 2).await?.caller().clone(), case.host(0), case.outside(0)])
}

async fn everyone_reaches(
    case: &Case,
    callers: &[Caller],
    to: SocketAddr,
    protocol: Protocol,
    server: &str,
) -> Result<()> {
    for caller in callers {
        case.comes_to_reach(caller, to, protocol, &[server]).await?;
    }
    Ok(())
}

async fn nobody_reaches(case: &Case, callers: &[Caller], to: SocketAddr, protocol: Protocol) -> Result<()> {
    for caller in callers {
        case.unreachable(caller, to, protocol).await?;
    }
    Ok(())
}

async fn type_and_ports(case: Case, protocol: Protocol) -> Result<()> {
    const PORT: u16 = 80;
    let service = case.service("web", json!({"ports": ports(protocol, PORT, None)}))?;
    let backend = case.backend("web", 1).await?;
    let (callers, node) = (callers(&case).await?, case.node_ip(0)?);
    let everyone =
        async |to: SocketAddr| everyone_reaches(&case, &callers, to, protocol, backend.name()).await;
    let nobody = async |to: SocketAddr| nobody_reaches(&case, &callers, to, protocol).await;
    everyone(service.cluster(PORT)?).await?;

    service.patch(json!({"type": "NodePort"}))?;
    let node_port = service.node_port(PORT, protocol)?;
    everyone(SocketAddr::new(node, node_port)).await?;

    service.patch(json!({"type": "LoadBalancer"}))?;
    let vip = case.routed_address(0);
    service.ingress(&[vip])?;
    ensure!(service.node_port(PORT, protocol)? == node_port, "the node port changed with the type");
    everyone(SocketAddr::new(vip, PORT)).await?;
    everyone(SocketAddr::new(node, node_port)).await?;

    // Another node port: its neighbour, as upstream takes it, if it is free.
    let mut wanted = node_port;
    let moved = loop {
        wanted = if wanted == 32_767 { 30_000 } else { wanted + 1 };
        ensure!(wanted != node_port, "no node port is free");
        if service.patch(json!({"ports": ports(protocol, PORT, Some(wanted))})).is_ok() {
            break wanted;
        }
    };
    everyone(SocketAddr::new(node, moved)).await?;
    nobody(SocketAddr::new(node, node_port)).await?;
    everyone(SocketAddr::new(vip, PORT)).await?;

    // Another port.
    service.patch(json!({"ports": ports(protocol, PORT + 1, Some(moved))}))?;
    everyone(SocketAddr::new(vip, PORT + 1)).await?;
    everyone(SocketAddr::new(node, moved)).await?;
    everyone(service.cluster(PORT + 1)?).await?;
    nobody(SocketAddr::new(vip, PORT)).await?;
    for caller in &callers {
        case.refuses(caller, service.cluster(PORT)?, protocol).await?;
    }

    // Scaled to nothing: refused everywhere, by ICMP.
    case.delete_pod(backend.name(), Duration::ZERO)?;
    for to in [SocketAddr::new(vip, PORT + 1), SocketAddr::new(node, moved), service.cluster(PORT + 1)?] {
        for caller in &callers {
            case.refuses(caller, to, protocol).await?;
        }
    }
    let backend = case.backend("web", 1).await?;
    for to in [SocketAddr::new(vip, PORT + 1), SocketAddr::new(node, moved)] {
        everyone_reaches(&case, &callers, to, protocol, backend.name()).await?;
    }

    // And back.
    service.patch(json!({"type": "ClusterIP", "ports": ports(protocol, PORT + 1, None)}))?;
    service.ingress(&[])?;
    nobody(SocketAddr::new(node, moved)).await?;
    nobody(SocketAddr::new(vip, PORT + 1)).await?;
    everyone_reaches(&case, &callers, service.cluster(PORT + 1)?, protocol, backend.name()).await
}

async fn without_node_port(case: Case) -> Result<()> {
    let service = case.service("web", json!({}))?;
    let backend = case.backend("web", 1).await?;
    let callers = callers(&case).await?;
    service.patch(json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false}))?;
    let vip = case.routed_address(0);
    service.ingress(&[vip])?;
    ensure!(service.node_port(80, Protocol::Tcp).is_err(), "a node port was allocated");
    everyone_reaches(&case, &callers, SocketAddr::new(vip, 80), Protocol::Tcp, backend.name()).await?;
    service.patch(json!({"allocateLoadBalancerNodePorts": true}))?;
    let node_port = service.node(case.node_ip(0)?, 80)?;
    for to in [node_port, SocketAddr::new(vip, 80)] {
        everyone_reaches(&case, &callers, to, Protocol::Tcp, backend.name()).await?;
    }
    Ok(())
}
