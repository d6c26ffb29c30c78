//! Several protocols on one port number, named ports, SCTP.

use crate::prelude::*;

/// The titles.
pub(crate) fn titles() -> Vec<Title> {
    vec![
        Title::new("should serve endpoints on same port and different protocols", |case| same_port(case, false))
            .each_family(),
        Title::new(
            "should serve endpoints on same port and different protocol for internal traffic on Type LoadBalancer",
            |case| same_port(case, true),
        )
        .each_family(),
        Title::new("should allow creating a basic SCTP service with pod and endpoints [LinuxOnly]", sctp).once(),
        Title::new(
            "should support named targetPorts that resolve to different ports on different endpoints",
            named_ports,
        )
        .each_family(),
    ]
}

async fn same_port(case: Case, balanced: bool) -> Result<()> {
    let tcp = json!({"name": "tcp-port", "port": 80, "targetPort": 8080, "protocol": "TCP"});
    let udp = json!({"name": "udp-port", "port": 80, "targetPort": 8081, "protocol": "UDP"});
    let kind = if balanced { "LoadBalancer" } else { "ClusterIP" };
    let service = case.service("web", json!({"type": kind, "ports": [tcp, udp]}))?;
    let pod = case.backend("web", 1).await?;
    let client = case.pod("client", 0).await?;
    let mut places = vec![service.cluster(80)?];
    if balanced {
        // No cloud is there to give it an address, unless one does.
        let vip = case.routed_address(0);
        service.ingress(&[vip])?;
        places.push(SocketAddr::new(vip, 80));
    }
    for caller in [client.caller(), &case.host(0)] {
        for to in &places {
            case.comes_to_reach(caller, *to, Protocol::Tcp, &[pod.name()]).await?;
            case.comes_to_reach(caller, *to, Protocol::Udp, &[pod.name()]).await?;
        }
    }
    service.patch(json!({"ports": [udp]}))?;
    case.refuses(&client, places[0], Protocol::Tcp).await?;
    for to in &places {
        case.unreachable(&client, *to, Protocol::Tcp).await?;
        case.stays("the other protocol", 5, async || client.udp_hostname(*to).await, is(pod.name())).await?;
    }
    service.patch(json!({"ports": [tcp]}))?;
    case.refuses(&client, places[0], Protocol::Udp).await?;
    for to in &places {
        case.comes_to_reach(&client, *to, Protocol::Tcp, &[pod.name()]).await?;
        case.unreachable(&client, *to, Protocol::Udp).await?;
    }
    Ok(())
}

/// Protocols and modules this kernel has taken in by now.
fn kernel_knows_sctp() -> Result<bool> {
    let protocols = std::fs::read_to_string("/proc/net/protocols").context("reading /proc/net/protocols")?;
    // A kernel without modules has no such file.
    let modules = std::fs::read_to_string("/proc/modules").unwrap_or_default();
    let named = |text: &str| text.lines().any(|line| line.to_ascii_lowercase().starts_with("sctp"));
    Ok(named(&protocols) || named(&modules))
}

async fn sctp(case: Case) -> Result<()> {
    let before = kernel_knows_sctp()?;
    let ports = json!([
        {"name": "sctp", "port": 5060, "targetPort": 5060, "protocol": "SCTP"},
        {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"},
    ]);
    let service = case.service("web", json!({"type": "NodePort", "ports": ports}))?;
    let pod = case.backend("web", 1).await?;
    let client = case.pod("client", 0).await?;
    // Once the Service's other port is served, the agents have seen it.
    case.comes_to_reach(&client, service.cluster(80)?, Protocol::Tcp, &[pod.name()]).await?;
    for agent in case.cluster().agents() {
        ensure!(
            agent.exit_status().is_none(),
            "the agent on {} ended:\n{}",
            agent.node().name(),
            agent.log()
        );
    }
    ensure!(kernel_knows_sctp()? == before, "an SCTP Service made the kernel load its SCTP module");
    let to = service.cluster(80)?;
    service.delete()?;
    case.unreachable(&client, to, Protocol::Tcp).await
}

async fn named_ports(case: Case) -> Result<()> {
    let pod = async |name: &str, node: usize, number: u16| {
        let mut container = netexec(&[&format!("--http-port={number}"), "--udp-port=-1"]);
        container["ports"] = json!([{"name": "http", "containerPort": number, "protocol": "TCP"}]);
        case.pod_with(name, node, json!({"app": "web"}), json!({"containers": [container]})).await
    };
    let pods = [pod("pod-8080", 0, 8080).await?, pod("pod-9090", 1, 9090).await?];
    let ports = json!([{"name": "web", "port": 80, "targetPort": "http", "protocol": "TCP"}]);
    let service = case.service("web", json!({"type": "NodePort", "ports": ports}))?;
    let client = case.pod("client", 0).await?;
    let names = pods.each_ref().map(PodClient::name);
    case.comes_to_reach(&client, service.cluster(80)?, Protocol::Tcp, &names).await?;
    case.comes_to_reach(&case.host(1), service.cluster(80)?, Protocol::Tcp, &names).await?;
    case.comes_to_reach(&case.outside(0), service.node(case.node_ip(2)?, 80)?, Protocol::Tcp, &names).await?;
    // One of them goes: the other's number stays right.
    case.delete_pod(pods[0].name(), Duration::ZERO)?;
    case.comes_to_reach(&client, service.cluster(80)?, Protocol::Tcp, &names[1..]).await
}
