//! Endpoints, ports and Services come and go; the source address stays.

use crate::prelude::*;

/// The titles.
pub(crate) fn titles() -> Vec<Title> {
    vec![
        Title::new("should serve a basic endpoint from pods", basic_endpoint).each_family(),
        Title::new("should serve multiport endpoints from pods", multiport).each_family(),
        Title::new("should be updated after adding or deleting ports", ports_change),
        Title::new(
            "should preserve source pod IP for traffic thru service cluster IP [LinuxOnly]",
            source_address,
        )
        .each_family(),
        Title::new("should allow pods to hairpin back to themselves through services", hairpin).each_family(),
        Title::new("should be able to up and down services", up_and_down),
        Title::new("should work after the service has been recreated", recreated),
    ]
}

async fn basic_endpoint(case: Case) -> Result<()> {
    let client = case.pod("client", 0).await?;
    let to = case.service("web", json!({}))?.cluster(80)?;
    case.refuses(&client, to, Protocol::Tcp).await?;
    let first = case.backend("web", 0).await?;
    case.comes_to_reach(&client, to, Protocol::Tcp, &[first.name()]).await?;
    let second = case.backend("web", 1).await?;
    case.comes_to_reach(&client, to, Protocol::Tcp, &[first.name(), second.name()]).await?;
    case.delete_pod(first.name(), Duration::ZERO)?;
    case.comes_to_reach(&client, to, Protocol::Tcp, &[second.name()]).await?;
    case.delete_pod(second.name(), Duration::ZERO)?;
    case.refuses(&client, to, Protocol::Tcp).await
}

async fn multiport(case: Case) -> Result<()> {
    let ports = json!([
        {"name": "first", "port": 80, "targetPort": "svc-port-1", "protocol": "TCP"},
        {"name": "second", "port": 81, "targetPort": "svc-port-2", "protocol": "TCP"},
    ]);
    let service = case.service("web", json!({"ports": ports}))?;
    let client = case.pod("client", 0).await?;
    let (first, second) = (service.cluster(80)?, service.cluster(81)?);
    case.refuses(&client, first, Protocol::Tcp).await?;
    // Each pod has one of the two ports.
    let pod = async |name: &str, node: usize, port: &str, number: u16| {
        let mut container = netexec(&[&format!("--http-port={number}"), "--udp-port=-1"]);
        container["ports"] = json!([{"name": port, "containerPort": number, "protocol": "TCP"}]);
        case.pod_with(name, node, json!({"app": "web"}), json!({"containers": [container]})).await
    };
    let pod1 = pod("pod1", 0, "svc-port-1", 100).await?;
    case.comes_to_reach(&client, first, Protocol::Tcp, &[pod1.name()]).await?;
    case.refuses(&client, second, Protocol::Tcp).await?;
    let pod2 = pod("pod2", 1, "svc-port-2", 101).await?;
    case.comes_to_reach(&client, second, Protocol::Tcp, &[pod2.name()]).await?;
    case.comes_to_reach(&client, first, Protocol::Tcp, &[pod1.name()]).await?;
    case.delete_pod(pod1.name(), Duration::ZERO)?;
    case.refuses(&client, first, Protocol::Tcp).await?;
    case.comes_to_reach(&client, second, Protocol::Tcp, &[pod2.name()]).await?;
    case.delete_pod(pod2.name(), Duration::ZERO)?;
    case.refuses(&client, second, Protocol::Tcp).await
}

async fn ports_change(case: Case) -> Result<()> {
    let one = json!({"name": "portname1", "port": 80, "targetPort": 8080, "protocol": "TCP"});
    let two = json!({"name": "portname2", "port": 81, "targetPort": 9090, "protocol": "TCP"});
    let service = case.service("web", json!({"ports": [one]}))?;
    let client = case.pod("client", 0).await?;
    let (first, second) = (service.cluster(80)?, service.cluster(81)?);
    let containers = json!({"containers": [
        netexec(&["--http-port=8080", "--udp-port=-1"]),
        {"name": "more", "image": "agnhost", "args": ["netexec", "--http-port=9090", "--udp-port=-1"]},
    ]});
    let pod = case.pod_with("pod", 1, json!({"app": "web"}), containers).await?;
    case.comes_to_reach(&client, first, Protocol::Tcp, &[pod.name()]).await?;
    case.refuses(&client, second, Protocol::Tcp).await?;
    service.patch(json!({"ports": [one, two]}))?;
    case.comes_to_reach(&client, second, Protocol::Tcp, &[pod.name()]).await?;
    case.comes_to_reach(&client, first, Protocol::Tcp, &[pod.name()]).await?;
    service.patch(json!({"ports": [two]}))?;
    case.refuses(&client, first, Protocol::Tcp).await?;
    case.comes_to_reach(&client, second, Protocol::Tcp, &[pod.name()]).await
}

async fn source_address(case: Case) -> Result<()> {
    let service = case.service("web", json!({}))?;
    let _backend = case.backend("web", 1).await?;
    for node in [0, 1] {
        let client = case.pod(&format!("client-{node}"), node).await?;
        let own = client.ip();
        let seen = |answer: &Result<SocketAddr, NetError>| answer.as_ref().is_ok_and(|it| it.ip() == own);
        let (tcp, udp) = (service.cluster(80)?, service.cluster(81)?);
        case.visible("the source address over TCP", async || client.client_ip(tcp).await, seen).await?;
        case.visible("the source address over UDP", async || client.udp_client_ip(udp).await, seen).await?;
    }
    Ok(())
}

async fn hairpin(case: Case) -> Result<()> {
    let service = case.service("web", json!({}))?;
    let pod = case.backend("web", 0).await?;
    case.comes_to_reach(&pod, service.cluster(80)?, Protocol::Tcp, &[pod.name()]).await?;
    case.stays("hairpin", 20, async || pod.hostname(service.cluster(80).unwrap()).await, is(pod.name()))
        .await?;
    case.comes_to_reach(&pod, service.cluster(81)?, Protocol::Udp, &[pod.name()]).await?;
    case.stays("hairpin", 20, async || pod.udp_hostname(service.cluster(81).unwrap()).await, is(pod.name()))
        .await
}

/// Three pods behind a Service; their names.
async fn three(case: &Case, app: &str) -> Result<(Svc, Vec<PodClient>)> {
    let service = case.service(app, json!({}))?;
    let mut pods = Vec::new();
    for node in 0..3 {
        pods.push(case.backend(app, node).await?);
    }
    Ok((service, pods))
}

fn names(pods: &[PodClient]) -> Vec<&str> {
    pods.iter().map(PodClient::name).collect()
}

async fn up_and_down(case: Case) -> Result<()> {
    let client = case.pod("client", 0).await?;
    let host = case.host(1);
    let (first, pods1) = three(&case, "up-down-1").await?;
    let (second, pods2) = three(&case, "up-down-2").await?;
    let (to1, to2) = (first.cluster(80)?, second.cluster(80)?);
    for caller in [client.caller(), &host] {
        case.comes_to_reach(caller, to1, Protocol::Tcp, &names(&pods1)).await?;
        case.comes_to_reach(caller, to2, Protocol::Tcp, &names(&pods2)).await?;
    }
    first.delete()?;
    for caller in [client.caller(), &host] {
        case.unreachable(caller, to1, Protocol::Tcp).await?;
        case.reaches(caller, to2, Protocol::Tcp, &names(&pods2)).await?;
    }
    let (third, pods3) = three(&case, "up-down-3").await?;
    for caller in [client.caller(), &host] {
        case.reaches(caller, to2, Protocol::Tcp, &names(&pods2)).await?;
        case.comes_to_reach(caller, third.cluster(80)?, Protocol::Tcp, &names(&pods3)).await?;
    }
    Ok(())
}

async fn recreated(case: Case) -> Result<()> {
    let client = case.pod("client", 0).await?;
    let (service, pods) = three(&case, "web").await?;
    let ips = service.cluster_ips()?;
    let (tcp, udp) = (service.cluster(80)?, service.cluster(81)?);
    case.comes_to_reach(&client, tcp, Protocol::Tcp, &names(&pods)).await?;
    service.delete()?;
    case.unreachable(&client, tcp, Protocol::Tcp).await?;
    let again = case.service("web", json!({"clusterIP": ips[0], "clusterIPs": ips}))?;
    ensure!(again.cluster_ips()? == ips, "the Service got other addresses than it asked for");
    case.comes_to_reach(&client, tcp, Protocol::Tcp, &names(&pods)).await?;
    case.comes_to_reach(&client, udp, Protocol::Udp, &names(&pods)).await?;
    case.comes_to_reach(&case.host(2), tcp, Protocol::Tcp, &names(&pods)).await
}
