//! Node ports and external IPs.

use crate::prelude::*;

/// The titles.
pub(crate) fn titles() -> Vec<Title> {
    vec![
        Title::new("should be able to create a functioning NodePort service", functioning).each_family(),
        Title::new(
            "should be possible to connect to a service via ExternalIP when the external IP is not assigned to a node",
            external_ip,
        )
        .each_family(),
        Title::new(
            "should be able to update service type to NodePort listening on same port number but different protocols",
            same_number,
        )
        .each_family(),
        Title::new("should release NodePorts on delete", released).once().each_family(),
    ]
}

/// Clients of every kind: pods of two nodes, processes of two nodes, a host outside.
async fn everyone(case: &Case) -> Result<Vec<Caller>> {
    let (near, far) = (case.pod("client-0", 0).await?, case.pod("client-2", 2).await?);
    Ok(vec![near.caller().clone(), far.caller().clone(), case.host(0), case.host(2), case.outside(0)])
}

async fn functioning(case: Case) -> Result<()> {
    let service = case.service("web", json!({"type": "NodePort"}))?;
    let pods = [case.backend("web", 0).await?, case.backend("web", 1).await?];
    let names = pods.each_ref().map(PodClient::name);
    let callers = everyone(&case).await?;
    case.comes_to_reach(&callers[0], service.cluster(80)?, Protocol::Tcp, &names).await?;
    for caller in &callers {
        case.comes_to_reach(caller, service.cluster(80)?, Protocol::Tcp, &names).await?;
        // Node 2 has no endpoint.
        for node in 0..3 {
            let ip = case.node_ip(node)?;
            case.comes_to_reach(caller, service.node(ip, 80)?, Protocol::Tcp, &names).await?;
            case.comes_to_reach(caller, service.node_udp(ip, 81)?, Protocol::Udp, &names).await?;
        }
    }
    Ok(())
}

async fn external_ip(case: Case) -> Result<()> {
    let external = case.routed_address(0);
    let service = case.service("web", json!({"externalIPs": [external]}))?;
    let pods = [case.backend("web", 0).await?, case.backend("web", 1).await?];
    let names = pods.each_ref().map(PodClient::name);
    let callers = everyone(&case).await?;
    case.comes_to_reach(&callers[0], service.cluster(80)?, Protocol::Tcp, &names).await?;
    for caller in &callers {
        case.comes_to_reach(caller, SocketAddr::new(external, 80), Protocol::Tcp, &names).await?;
        case.comes_to_reach(caller, SocketAddr::new(external, 81), Protocol::Udp, &names).await?;
    }
    // Taken away, it belongs to nobody again.
    service.patch(json!({"externalIPs": null}))?;
    case.unreachable(&callers[0], SocketAddr::new(external, 80), Protocol::Tcp).await?;
    case.comes_to_reach(&callers[0], service.cluster(80)?, Protocol::Tcp, &names).await
}

async fn same_number(case: Case) -> Result<()> {
    let port = |name: &str, protocol: Protocol, target: u16| json!({"name": name, "port": 80, "targetPort": target, "protocol": protocol.name()});
    let service = case.service("web", json!({"ports": [port("tcp-port", Protocol::Tcp, 8080)]}))?;
    let pod = case.backend("web", 1).await?;
    let callers = everyone(&case).await?;
    case.comes_to_reach(&callers[0], service.cluster(80)?, Protocol::Tcp, &[pod.name()]).await?;
    service.patch(json!({
        "type": "NodePort",
        "ports": [port("tcp-port", Protocol::Tcp, 8080), port("udp-port", Protocol::Udp, 8081)],
    }))?;
    // One number for both or two: both are right (upstream only asks for some).
    let number = |protocol: Protocol| service.node_port(80, protocol);
    for caller in &callers {
        for protocol in Protocol::BOTH {
            case.comes_to_reach(caller, service.cluster(80)?, protocol, &[pod.name()]).await?;
            for node in [0, 1] {
                let to = SocketAddr::new(case.node_ip(node)?, number(protocol)?);
                case.comes_to_reach(caller, to, protocol, &[pod.name()]).await?;
            }
        }
    }
    Ok(())
}

async fn released(case: Case) -> Result<()> {
    let service = case.service("web", json!({"type": "NodePort"}))?;
    let pod = case.backend("web", 1).await?;
    let client = case.pod("client", 0).await?;
    let to = service.node(case.node_ip(0)?, 80)?;
    case.comes_to_reach(&client, to, Protocol::Tcp, &[pod.name()]).await?;
    let listening = async || -> Result<bool> {
        let port = format!(":{}", to.port());
        let sockets = case.node(0).exec(&["ss", "-Htuln"], &[], Duration::from_secs(5)).await?;
        ensure!(sockets.status.success(), "ss: {}", String::from_utf8_lossy(&sockets.stderr));
        let text = String::from_utf8_lossy(&sockets.stdout).into_owned();
        Ok(text
            .lines()
            .any(|line| line.split_whitespace().nth(3).is_some_and(|local| local.ends_with(&port))))
    };
    ensure!(!listening().await?, "a process listens on the node port: S-85 says none has to");
    service.delete()?;
    case.unreachable(&client, to, Protocol::Tcp).await?;
    case.refuses(&case.host(0), to, Protocol::Tcp).await?;
    ensure!(!listening().await?, "a process still listens on the node port");
    // The number is free for another Service.
    let ports =
        json!([{"name": "http", "port": 80, "targetPort": 8080, "nodePort": to.port(), "protocol": "TCP"}]);
    let again =
        case.service("again", json!({"type": "NodePort", "selector": {"app": "web"}, "ports": ports}))?;
    case.comes_to_reach(&client, again.node(case.node_ip(0)?, 80)?, Protocol::Tcp, &[pod.name()]).await
}
