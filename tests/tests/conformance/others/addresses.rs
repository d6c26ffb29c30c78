//! Addresses out of the ordinary, and addresses nobody may touch.

use std::net::Ipv4Addr;

use crate::prelude::*;

/// `service_cidrs.go`.
pub(super) fn ranges() -> Vec<Title> {
    vec![
        Title::new("should create Services and serve on different Service CIDRs", another_range)
            .alone(|builder| builder.another_service_cidr("203.0.113.0/24")),
    ]
}

/// `funny_ips.go`.
pub(super) fn leading_zeros() -> Vec<Title> {
    vec![Title::new(
        "IPv4 Service Type ClusterIP with leading zeros should work interpreted as decimal",
        decimal,
    )]
}

/// `no_snat.go`.
pub(super) fn no_snat() -> Vec<Title> {
    vec![Title::new("Should be able to send traffic between Pods without SNAT", untouched).each_family()]
}

async fn another_range(case: Case) -> Result<()> {
    let ip = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 23));
    let spec = json!({"ipFamilyPolicy": "SingleStack", "type": "NodePort"});
    let first = case.service("web", spec.clone())?;
    let mut second = spec;
    second["clusterIP"] = json!(ip);
    second["selector"] = json!({"app": "web"});
    let second = case.service("second", second)?;
    ensure!(second.cluster_ip()? == ip, "the Service has another address");
    let pods = [case.backend("web", 0).await?, case.backend("web", 1).await?];
    let names = pods.each_ref().map(PodClient::name);
    for caller in [case.pod("client", 0).await?.caller(), &case.host(0), &case.host(2)] {
        for service in [&first, &second] {
            case.comes_to_reach(caller, service.cluster(80)?, Protocol::Tcp, &names).await?;
            case.comes_to_reach(caller, service.cluster(81)?, Protocol::Udp, &names).await?;
            let node_port = service.node(case.node_ip(1)?, 80)?;
            case.comes_to_reach(caller, node_port, Protocol::Tcp, &names).await?;
        }
    }
    Ok(())
}

async fn decimal(case: Case) -> Result<()> {
    // Which address is free, is found out by asking for it. 011 is 11 in decimal and 9 in octal.
    let mut found = None;
    for third in 0..200 {
        let written = format!("10.0110.{third:03}.011");
        let spec = json!({"ipFamilyPolicy": "SingleStack", "clusterIP": written});
        if let Ok(service) = case.service("web", spec) {
            found = Some((service, third, written));
            break;
        }
    }
    let (service, third, written) = found.context("no address is free")?;
    let object = service.object()?;
    let stored = object.spec.and_then(|spec| spec.cluster_ip);
    ensure!(stored.as_deref() == Some(&written), "the API server stores {stored:?} for {written}");
    let backend = case.backend("web", 1).await?;
    let decimal = SocketAddr::new(Ipv4Addr::new(10, 110, third, 11).into(), 80);
    let octal = SocketAddr::new(Ipv4Addr::new(10, 72, third, 9).into(), 80);
    for caller in [case.pod("client", 0).await?.caller(), &case.host(0), &case.outside(0)] {
        case.comes_to_reach(caller, decimal, Protocol::Tcp, &[backend.name()]).await?;
        let impatient = caller.within(Duration::from_millis(100));
        case.stays("the octal reading", 3, async || impatient.hostname(octal).await, Result::is_err).await?;
    }
    Ok(())
}

async fn untouched(case: Case) -> Result<()> {
    // Services in front of all of them change nothing about addresses of their own.
    let _service = case.service("web", json!({"type": "NodePort"}))?;
    let mut pods = Vec::new();
    for node in [0, 0, 1, 2] {
        pods.push(case.backend("web", node).await?);
    }
    for client in &pods {
        for server in &pods {
            let seen = |answer: &Result<SocketAddr, NetError>| {
                answer.as_ref().is_ok_and(|it| it.ip() == client.ip())
            };
            let (tcp, udp) = (SocketAddr::new(server.ip(), 8080), SocketAddr::new(server.ip(), 8081));
            let what = format!("{} at {}", client.name(), server.name());
            case.stays(&what, 2, async || client.client_ip(tcp).await, seen).await?;
            case.stays(&what, 2, async || client.udp_client_ip(udp).await, seen).await?;
        }
    }
    Ok(())
}
