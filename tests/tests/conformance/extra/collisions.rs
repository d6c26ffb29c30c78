//! One client port, several frontends, one endpoint: translated, all these flows have the same addresses and ports at the
//! endpoint, and each answer has to come back from where the client asked.

use tokio::net::UdpSocket;

use crate::{conntrack::source_port, prelude::*};

/// The titles.
pub(super) fn titles() -> Vec<Title> {
    vec![
        Title::new(
            "should keep flows apart that reach one endpoint through several addresses from one client port over TCP",
            streams,
        )
        .each_family(),
        Title::new(
            "should keep flows apart that reach one endpoint through several addresses from one client port over UDP",
            datagrams,
        )
        .each_family(),
    ]
}

struct Setting {
    backend: PodClient,
    client: PodClient,
    /// Two cluster IPs, an external address and a node port, all in front of the backend.
    tcp: Vec<SocketAddr>,
    udp: Vec<SocketAddr>,
}

async fn setting(case: &Case, node: usize) -> Result<Setting> {
    let external = case.routed_address(0);
    let first = case.service("web", json!({"type": "NodePort", "externalIPs": [external]}))?;
    let second = case.service("second", json!({"selector": {"app": "web"}}))?;
    let backend = case.backend("web", node).await?;
    let client = case.pod("client", 0).await?;
    let own = case.node_ip(0)?;
    let tcp =
        vec![first.cluster(80)?, second.cluster(80)?, SocketAddr::new(external, 80), first.node(own, 80)?];
    let udp = vec![
        first.cluster(81)?,
        second.cluster(81)?,
        SocketAddr::new(external, 81),
        first.node_udp(own, 81)?,
    ];
    for to in &tcp {
        case.comes_to_reach(&client, *to, Protocol::Tcp, &[backend.name()]).await?;
    }
    Ok(Setting { backend, client, tcp, udp })
}

async fn streams(case: Case) -> Result<()> {
    for node in [0, 1] {
        let case = &case;
        let Setting { backend, client, tcp, .. } = setting_in(case, node).await?;
        let from = client.from_port(source_port());
        let mut open = Vec::new();
        for to in &tcp {
            let flow =
                from.http_flow(*to).await.with_context(|| format!("{to}, after {} others", open.len()))?;
            open.push(flow);
        }
        // In turn, so that each answers while the others are there.
        for round in 0..3 {
            for (to, flow) in tcp.iter().zip(&open) {
                let answer = flow.get("/hostname").await;
                ensure!(answer.as_deref() == Ok(backend.name()), "round {round}, {to}: {answer:?}");
            }
        }
        remove(case, &[&backend, &client]).await?;
    }
    Ok(())
}

async fn datagrams(case: Case) -> Result<()> {
    for node in [0, 1] {
        let case = &case;
        let Setting { backend, client, udp, .. } = setting_in(case, node).await?;
        let (port, name) = (source_port(), backend.name().to_owned());
        let any = if udp[0].is_ipv4() { "0.0.0.0" } else { "::" }.parse::<IpAddr>()?;
        // One socket for all of them, as a resolver's.
        let (wanted, namespace) = (udp.clone(), client.pod.as_ref().clone());
        let seen = namespace.run(async move {
            let socket = UdpSocket::bind(SocketAddr::new(any, port)).await?;
            let mut seen = Vec::new();
            for _ in 0..3 {
                for to in &wanted {
                    socket.send_to(b"hostname", to).await?;
                    let mut buffer = [0; 256];
                    let received =
                        tokio::time::timeout(Duration::from_secs(1), socket.recv_from(&mut buffer));
                    let answer = match received.await {
                        Ok(received) => {
                            let (length, from) = received?;
                            Some((String::from_utf8_lossy(&buffer[..length]).into_owned(), from))
                        }
                        Err(_) => None,
                    };
                    seen.push((*to, answer));
                }
            }
            anyhow::Ok(seen)
        });
        for (to, answer) in seen.await? {
            ensure!(answer == Some((name.clone(), to)), "asked {to}, the answer was {answer:?}");
        }
        remove(case, &[&backend, &client]).await?;
    }
    Ok(())
}

/// A setting with its backend beside the client or on another node; Services of the one before are gone.
async fn setting_in(case: &Case, node: usize) -> Result<Setting> {
    for service in case.api().values("services", Some(case.namespace()))? {
        let name = service["metadata"]["name"].as_str().unwrap_or_default();
        case.api().delete::<k8s_openapi::api::core::v1::Service>(case.namespace(), name)?;
    }
    setting(case, node).await
}

async fn remove(case: &Case, pods: &[&PodClient]) -> Result<()> {
    for pod in pods {
        case.delete_pod(pod.name(), Duration::ZERO)?;
    }
    case.eventually("the pods are gone", async || {
        Ok(pods.iter().all(|pod| case.cluster().runtime().pod(case.namespace(), pod.name()).is_none()))
    })
    .await
}
