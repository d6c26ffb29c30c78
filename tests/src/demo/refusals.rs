//! What is refused, what is dropped, and how a client notices.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::Stage;
use crate::{
    cluster::Cluster,
    lab::{KubePod, Node},
    workload::{NetError, UdpClient, ping, tcp_connect},
};

/// At once, on a machine that has other things to do.
const AT_ONCE: Duration = Duration::from_millis(100);
/// After the first SYN was sent again: Linux ignores an ICMPv6 error that arrives while `connect()` still holds the socket,
/// as it does here, where the refusal is back before the system call has ended.
const SECOND_SYN: Duration = Duration::from_millis(1500);

pub(super) async fn nobody(stage: &mut Stage) -> anyhow::Result<()> {
    let Stage { cluster, teller } = stage;
    let member = cluster.pod("kinds", "app=member")?;
    let nobody = cluster.cluster_ip("kinds", "nobody")?;
    let dns = cluster.cluster_ip("kube-system", "kube-dns")?;
    teller.note(
        "There is no endpoint to choose: the program turns the packet round as an ICMP port-unreachable that says it \
         comes from the ClusterIP. The client's connect() fails with ECONNREFUSED instead of waiting for minutes.",
    );
    let cases = [
        (nobody, 80, false, "no_endpoint", "the Service nobody, TCP port 80"),
        (nobody, 81, false, "unknown_port", "a port no Service has, TCP port 81"),
        (dns, 54, true, "unknown_port", "kube-dns at a port it does not have, UDP port 54"),
    ];
    if nobody.is_ipv6() {
        teller.note(
            "Over IPv6 a TCP client hears it with its second SYN, a second later: its kernel ignores an ICMPv6 error that \
             is back before connect() has let go of the socket. The REJECT of ip6tables meets the same fate.",
        );
    }
    for (address, port, udp, reason, what) in cases {
        let limit = if address.is_ipv6() && !udp { SECOND_SYN } else { AT_ONCE };
        let before = dropped(cluster, member.node(), reason)?;
        let (outcome, took) = knock(&member, SocketAddr::new(address, port), udp).await;
        let counted = dropped(cluster, member.node(), reason)? - before;
        teller.check(
            outcome == Err(NetError::Refused) && took < limit && counted > 0,
            format!("{what}: {} after {took:.1?}, counted as {reason}", said(&outcome)),
        );
    }
    Ok(())
}

pub(super) async fn ping_cluster_ip(stage: &mut Stage) -> anyhow::Result<()> {
    let Stage { cluster, teller } = stage;
    let member = cluster.pod("kinds", "app=member")?;
    let ip = cluster.cluster_ip("kinds", "same-name")?;
    teller.note(
        "A Service is ports, not a host: an echo request has no port, so there is no endpoint it could belong to. Left \
         alone it would follow default routes to nowhere, and back; so it is dropped, and counted.",
    );
    let before = dropped(cluster, member.node(), "not_proxied")?;
    let outcome = ping(&member, ip, Duration::from_millis(300)).await;
    let counted = dropped(cluster, member.node(), "not_proxied")? - before;
    teller.check(
        outcome == Err(NetError::Timeout) && counted == 1,
        format!("ping {ip}: {}, {counted} packet counted as not_proxied", said(&outcome)),
    );
    let other = cluster.pods("kinds", "app=member")?.pop();
    if let Some(address) = other.as_ref().and_then(|pod| pod.addresses().first()) {
        let outcome = ping(&member, *address, Duration::from_secs(2)).await;
        teller.check(outcome.is_ok(), format!("ping {address}, the address of a pod: {}", said(&outcome)));
    }
    Ok(())
}

async fn knock(from: &KubePod, to: SocketAddr, udp: bool) -> (Result<(), NetError>, Duration) {
    let begin = Instant::now();
    let outcome = if udp {
        match UdpClient::connect(from, to, None, 0).await {
            Ok(client) => client.ask("anybody?", Duration::from_secs(2)).await.map(drop),
            Err(error) => Err(error),
        }
    } else {
        tcp_connect(from, to).await.map(drop)
    };
    (outcome, begin.elapsed())
}

fn dropped(cluster: &Cluster, node: &Node, reason: &str) -> anyhow::Result<u64> {
    Ok(cluster.tables(node)?.dropped(reason))
}

fn said<T>(outcome: &Result<T, NetError>) -> String {
    match outcome {
        Ok(_) => "answered".to_owned(),
        Err(NetError::Timeout) => "no answer".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Connects and closes; for callers that only want to know whether somebody is there.
pub(super) async fn is_open(from: &KubePod, address: IpAddr, port: u16) -> Result<(), NetError> {
    tcp_connect(from, SocketAddr::new(address, port)).await.map(drop)
}
