//! Endpoints come and go, ports come and go, the source address stays.

use crate::prelude::*;

/// The titles.
pub(crate) fn titles() -> Vec<Title> {
    vec![
        Title::new("should serve a basic endpoint from pods", basic_endpoint).each_family(),
        Title::new(
            "should preserve source pod IP for traffic thru service cluster IP [LinuxOnly]",
            source_address,
        )
        .each_family(),
    ]
}

async fn basic_endpoint(case: Case) -> Result<()> {
    let client = case.pod("client", 0).await?;
    let service = case.service("web", json!({}))?;
    let to = service.cluster(80)?;
    case.refuses(&client, to, Protocol::Tcp).await?;
    let (first, second) = (case.backend("web", 0).await?, case.backend("web", 1).await?);
    case.comes_to_reach(&client, to, Protocol::Tcp, &[first.name(), second.name()]).await?;
    case.delete_pod(first.name(), Duration::ZERO)?;
    case.comes_to_reach(&client, to, Protocol::Tcp, &[second.name()]).await?;
    case.delete_pod(second.name(), Duration::ZERO)?;
    case.refuses(&client, to, Protocol::Tcp).await
}

async fn source_address(case: Case) -> Result<()> {
    let service = case.service("web", json!({}))?;
    let _backend = case.backend("web", 1).await?;
    for node in [0, 1] {
        let client = case.pod(&format!("client-{node}"), node).await?;
        let to = service.cluster(80)?;
        let seen = |ip: IpAddr| {
            move |answer: &Result<SocketAddr, NetError>| answer.as_ref().is_ok_and(|it| it.ip() == ip)
        };
        case.visible("the source address over TCP", async || client.client_ip(to).await, seen(client.ip()))
            .await?;
        let to = service.cluster(81)?;
        case.stays(
            "the source address over UDP",
            1,
            async || client.udp_client_ip(to).await,
            seen(client.ip()),
        )
        .await?;
    }
    Ok(())
}
