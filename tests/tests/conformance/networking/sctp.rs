//! The granular checks over SCTP. Servers that speak it stand beside netexec, and clients bring it along: the kernel's is not
//! needed. Processes of a node are not among them, see S-73.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use lb_tests::workload::{SctpServer, sctp_ask};

use crate::{case::PodClient, prelude::*};

/// Port of the Service and of its endpoints, as upstream's.
const PORT: u16 = 90;
const TARGET: u16 = 8082;
/// One association.
const ASK: Duration = Duration::from_secs(5);
/// Until the first of them is answered.
const SOON: Duration = Duration::from_secs(10);

/// The titles.
pub(super) fn titles() -> Vec<Title> {
    vec![
        Title::new("should function for pod-Service: sctp", from_pod),
        Title::new("should function for endpoint-Service: sctp", from_endpoint),
    ]
}

struct Setting {
    service: Svc,
    servers: Vec<(PodClient, SctpServer)>,
}

impl Setting {
    async fn new(case: &Case) -> Result<Self> {
        let ports = json!([
            {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"},
            {"name": "sctp", "port": PORT, "targetPort": TARGET, "protocol": "SCTP"},
        ]);
        let service = case.service("web", json!({"type": "NodePort", "ports": ports}))?;
        let mut servers = Vec::new();
        for node in 0..3 {
            let pod = case.backend("web", node).await?;
            let server = SctpServer::start(&pod.pod, TARGET, pod.name()).await?;
            servers.push((pod, server));
        }
        Ok(Self { service, servers })
    }

    /// The client on this node meets every server at the cluster IP, and at the node port of this node and of another one.
    async fn dial(&self, case: &Case, client: &PodClient, node: usize) -> Result<()> {
        let spec = self.service.object()?.spec.context("a spec")?;
        let port = spec.ports.unwrap_or_default().into_iter().find(|port| port.port == i32::from(PORT));
        let node_port = port.and_then(|port| port.node_port).context("a node port")? as u16;
        for to in [
            self.service.cluster(PORT)?,
            SocketAddr::new(case.node_ip(node)?, node_port),
            SocketAddr::new(case.node_ip((node + 1) % 3)?, node_port),
        ] {
            self.reaches(client, to).await.with_context(|| format!("{} at {to}/SCTP", client.name()))?;
        }
        for (pod, server) in &self.servers {
            ensure!(server.corrupt() == 0, "{}: {} wrong checksums", pod.name(), server.corrupt());
        }
        Ok(())
    }

    async fn reaches(&self, client: &PodClient, to: SocketAddr) -> Result<()> {
        /// No port of a client is used twice in a short time.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let ask = async || {
            let port = 33_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 30_000;
            sctp_ask(&client.pod, to, port, "hostname", ASK).await
        };
        let begin = Instant::now();
        while let Err(error) = ask().await {
            ensure!(begin.elapsed() < SOON, "no answer: {error}");
        }
        let wanted: BTreeSet<&str> = self.servers.iter().map(|(pod, _)| pod.name()).collect();
        let mut met = BTreeSet::new();
        for asked in 1..=120 {
            let name = ask().await?;
            let known = wanted.get(name.as_str());
            met.insert(*known.with_context(|| format!("{name} answered, not one of {wanted:?}"))?);
            if met == wanted && asked >= 12 {
                return Ok(());
            }
        }
        bail!("met only {met:?} of {wanted:?}")
    }
}

async fn from_pod(case: Case) -> Result<()> {
    let setting = Setting::new(&case).await?;
    let client = case.pod("test-container-pod", 0).await?;
    setting.dial(&case, &client, 0).await
}

async fn from_endpoint(case: Case) -> Result<()> {
    let setting = Setting::new(&case).await?;
    // Each of them is among those that may answer it.
    for (node, (server, _)) in setting.servers.iter().enumerate() {
        setting.dial(&case, server, node).await?;
    }
    Ok(())
}
