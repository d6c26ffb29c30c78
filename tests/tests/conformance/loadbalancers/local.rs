//! External traffic policy Local: source addresses kept, health checks told, nobody inside locked out.

use lb_tests::workload::Told;

use super::balanced;
use crate::prelude::*;

/// The titles.
pub(super) fn titles() -> Vec<Title> {
    vec![
        Title::new("should work for type=LoadBalancer", load_balancer).each_family(),
        Title::new("should work for type=NodePort", node_port).each_family(),
        Title::new("should only target nodes with endpoints", nodes_with_endpoints).each_family(),
        Title::new("should work from pods", from_pods).each_family(),
        Title::new("should handle updates to ExternalTrafficPolicy field", policy_changes).each_family(),
    ]
}

/// The server sees this address as the client's.
fn seen_as(ip: IpAddr) -> impl Fn(&Result<SocketAddr, NetError>) -> bool {
    move |answer| answer.as_ref().is_ok_and(|it| it.ip() == ip)
}

/// The health check of a node comes to say so many endpoints (none: 503).
async fn health_says(case: &Case, service: &Svc, port: u16, node: usize, endpoints: u64) -> Result<()> {
    let (to, client) = (SocketAddr::new(case.node_ip(node)?, port), case.outside(1));
    let (namespace, name) = (case.namespace(), service.name());
    let wanted = |told: &Result<Told, NetError>| {
        let Ok(Told { status, body, .. }) = told else { return false };
        let Ok(said) = serde_json::from_str::<Value>(body) else { return false };
        *status == if endpoints == 0 { 503 } else { 200 }
            && said["service"] == json!({"namespace": namespace, "name": name})
            && said["localEndpoints"] == endpoints
            && said["serviceProxyHealthy"] == true
    };
    let what = format!("the health check of node {node} counts {endpoints}");
    case.visible(&what, async || client.http(to, "/healthz").await, wanted).await?;
    Ok(())
}

async fn no_health_check(case: &Case, port: u16, node: usize) -> Result<()> {
    let (to, client) = (SocketAddr::new(case.node_ip(node)?, port), case.outside(1));
    case.visible("the health check is gone", async || client.connect(to).await, refused).await?;
    Ok(())
}

async fn load_balancer(case: Case) -> Result<()> {
    let (service, vip) = balanced(&case, 0, json!({"externalTrafficPolicy": "Local"}))?;
    let backend = case.backend("web", 0).await?;
    let (tcp, udp) = (SocketAddr::new(vip, 80), SocketAddr::new(vip, 81));
    for number in 0..2 {
        let (client, ip) = (case.outside(number), case.outside_ip(number)?);
        case.visible("the source address", async || client.client_ip(tcp).await, seen_as(ip)).await?;
        case.stays("the source address over UDP", 3, async || client.udp_client_ip(udp).await, seen_as(ip))
            .await?;
    }
    let port = service.health_port()?;
    for (node, endpoints) in [(0, 1), (1, 0), (2, 0)] {
        health_says(&case, &service, port, node, endpoints).await?;
    }
    // Two endpoints count as two, one pod with two ports as one.
    let _second = case.backend("web", 0).await?;
    health_says(&case, &service, port, 0, 2).await?;
    case.delete_pod(backend.name(), Duration::ZERO)?;
    health_says(&case, &service, port, 0, 1).await?;
    // The port is given back with the type.
    service.patch(json!({"type": "ClusterIP"}))?;
    for node in 0..3 {
        no_health_check(&case, port, node).await?;
    }
    Ok(())
}

async fn node_port(case: Case) -> Result<()> {
    let service = case.service("web", json!({"type": "NodePort", "externalTrafficPolicy": "Local"}))?;
    let _backends = [case.backend("web", 0).await?, case.backend("web", 1).await?];
    let pods = [case.pod("client-0", 0).await?, case.pod("client-2", 2).await?];
    for node in [0, 1] {
        let (tcp, udp) = (service.node(case.node_ip(node)?, 80)?, service.node_udp(case.node_ip(node)?, 81)?);
        let outside = (case.outside(0), case.outside_ip(0)?);
        let pods = pods.iter().map(|pod| (pod.caller().clone(), pod.ip()));
        for (client, ip) in pods.chain([outside]) {
            let what = format!("the source address of {} at node {node}", client.name());
            case.visible(&what, async || client.client_ip(tcp).await, seen_as(ip)).await?;
            case.stays(&what, 3, async || client.udp_client_ip(udp).await, seen_as(ip)).await?;
        }
    }
    // The third node has no endpoint: silence for hosts outside and for pods of other nodes, which are such there.
    let to = service.node(case.node_ip(2)?, 80)?;
    for client in [&case.outside(0), pods[0].caller()] {
        case.silent("the node without endpoint", 5, async || client.connect(to).await).await?;
    }
    // Its own pods and processes are inside (S-33).
    for client in [pods[1].caller(), &case.host(2)] {
        case.stays("inside the node without endpoint", 5, async || client.hostname(to).await, Result::is_ok)
            .await?;
    }
    Ok(())
}

async fn nodes_with_endpoints(case: Case) -> Result<()> {
    // An address for each node: the balancer could take any of them.
    let service = case.service("web", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}))?;
    let vips = [0, 1, 2].map(|node| case.routed_address(node));
    service.ingress(&vips)?;
    let (port, outside) = (service.health_port()?, case.outside(0));
    for with in 0..3 {
        let backend = case.backend("web", with).await?;
        for (node, vip) in vips.iter().enumerate() {
            let (to, has) = (SocketAddr::new(*vip, 80), node == with);
            health_says(&case, &service, port, node, u64::from(has)).await?;
            if has {
                case.comes_to_reach(&outside, to, Protocol::Tcp, &[backend.name()]).await?;
            } else {
                // Refused until the node knows of the endpoint elsewhere, silent from then on.
                let look = outside.within(Duration::from_millis(40));
                case.visible("silence", async || look.connect(to).await, silent).await?;
                case.silent("a node without endpoint", 3, async || outside.connect(to).await).await?;
            }
        }
        case.delete_pod(backend.name(), Duration::ZERO)?;
        health_says(&case, &service, port, with, 0).await?;
    }
    Ok(())
}

async fn from_pods(case: Case) -> Result<()> {
    let (_service, vip) = balanced(&case, 0, json!({"externalTrafficPolicy": "Local"}))?;
    let backends = [case.backend("web", 0).await?, case.backend("web", 1).await?];
    let names = backends.each_ref().map(PodClient::name);
    // With an endpoint beside it and without one: a pod reaches all of them, as itself.
    for node in [0, 2] {
        let pod = case.pod(&format!("pause-{node}"), node).await?;
        case.comes_to_reach(&pod, SocketAddr::new(vip, 80), Protocol::Tcp, &names).await?;
        let what = "the source address of a pod";
        let to = SocketAddr::new(vip, 80);
        case.stays(what, 10, async || pod.client_ip(to).await, seen_as(pod.ip())).await?;
        let to = SocketAddr::new(vip, 81);
        case.stays(what, 10, async || pod.udp_client_ip(to).await, seen_as(pod.ip())).await?;
        // So does a process of the node, as its node.
        case.reaches(&case.host(node), SocketAddr::new(vip, 80), Protocol::Tcp, &names).await?;
    }
    Ok(())
}

async fn policy_changes(case: Case) -> Result<()> {
    let service = case.service("web", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}))?;
    let vips = [0, 1].map(|node| case.routed_address(node));
    service.ingress(&vips)?;
    let backend = case.backend("web", 0).await?;
    let (outside, ip) = (case.outside(0), case.outside_ip(0)?);
    let [near, far] = vips.map(|vip| SocketAddr::new(vip, 80));
    let port = service.health_port()?;
    case.visible("the source address", async || outside.client_ip(near).await, seen_as(ip)).await?;
    case.silent("the node without endpoint", 3, async || outside.connect(far).await).await?;
    health_says(&case, &service, port, 0, 1).await?;

    service.patch(json!({"externalTrafficPolicy": "Cluster"}))?;
    ensure!(service.health_port().is_err(), "the health check node port is still allocated");
    for node in 0..3 {
        no_health_check(&case, port, node).await?;
    }
    // All nodes serve, and hide the client: the answer has to come back through them.
    let hidden = |answer: &Result<SocketAddr, NetError>| answer.as_ref().is_ok_and(|it| it.ip() != ip);
    for to in [near, far] {
        case.comes_to_reach(&outside, to, Protocol::Tcp, &[backend.name()]).await?;
        case.visible("another source address", async || outside.client_ip(to).await, hidden).await?;
    }
    let node_port = service.node(case.node_ip(2)?, 80)?;
    case.stays("the node port", 3, async || outside.hostname(node_port).await, is(backend.name())).await?;

    service.patch(json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": port}))?;
    case.visible("the source address again", async || outside.client_ip(near).await, seen_as(ip)).await?;
    case.unreachable(&outside, far, Protocol::Tcp).await?;
    health_says(&case, &service, port, 0, 1).await?;
    health_says(&case, &service, port, 1, 0).await
}
