//! What a proxy tells of itself on its node, where upstream asks from a host-network pod.

use crate::prelude::*;

/// The titles.
pub(super) fn titles() -> Vec<Title> {
    vec![Title::new("should check kube-proxy urls", urls).once()]
}

/// `ports.ProxyHealthzPort` and `ports.ProxyStatusPort`.
const HEALTHZ: u16 = 10256;
const STATUS: u16 = 10249;

async fn urls(case: Case) -> Result<()> {
    for node in 0..3 {
        let host = case.host(node);
        let at = |port| SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), port);
        let health = host.http(at(HEALTHZ), "/healthz").await?;
        ensure!(health.status == 200, "/healthz of {}: {health:?}", host.name());
        ensure!(health.body.contains("lastUpdated"), "/healthz of {}: {health:?}", host.name());
        let mode = host.http(at(STATUS), "/proxyMode").await?;
        ensure!(mode.status == 200 && !mode.body.is_empty(), "/proxyMode of {}: {mode:?}", host.name());
    }
    Ok(())
}
