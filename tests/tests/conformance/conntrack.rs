//! `test/e2e/network/conntrack.go`: "Conntrack". Datagram flows of one client port follow their Service; segments that
//! belong nowhere reach nobody untranslated.

#[path = "conntrack/invalid.rs"]
mod invalid;

use std::sync::atomic::{AtomicU16, Ordering};

use crate::prelude::*;

/// The titles.
pub(crate) fn groups() -> Vec<Group> {
    let titles = vec![
        Title::new(
            "should be able to preserve UDP traffic when server pod cycles for a NodePort service",
            node_port,
        )
        .each_family(),
        Title::new(
            "should be able to preserve UDP traffic when server pod cycles for a ClusterIP service",
            cluster_ip,
        )
        .each_family(),
        Title::new(
            "should be able to preserve UDP traffic when server pod cycles for a ClusterIP service with \
             InternalTrafficPolicy set to Local",
            local_policy,
        )
        .each_family(),
        Title::new(
            "should be able to preserve UDP traffic when server pod cycles for a ClusterIP service and client is \
             hostNetwork",
            host_network,
        )
        .each_family(),
        Title::new(
            "should be able to preserve UDP traffic when initial unready endpoints get ready",
            initially_unready,
        )
        .each_family(),
        Title::new("should drop INVALID conntrack entries [Privileged]", invalid::title).each_family(),
    ];
    vec![Group::new("conntrack.go", "Conntrack", titles)]
}

/// How long one datagram of a flow is waited for before the next one is sent.
const NEXT_DATAGRAM: Duration = Duration::from_millis(20);

/// A source port that no other title's client takes at the same place.
pub(crate) fn source_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    12_345 + NEXT.fetch_add(1, Ordering::Relaxed) % 4_000
}

/// A datagram flow: one client, one source port, one Service, as `nc -u -p` has it.
pub(crate) struct Flow {
    client: String,
    to: SocketAddr,
    socket: UdpFlow,
}

impl Flow {
    /// Opens it; sends nothing.
    pub(crate) async fn open(client: &Caller, to: SocketAddr) -> Result<Self> {
        Self::of_kind(client, to, UdpKind::Connected).await
    }

    /// As [`Flow::open`], with a socket of this kind.
    pub(crate) async fn of_kind(client: &Caller, to: SocketAddr, kind: UdpKind) -> Result<Self> {
        let from = client.within(NEXT_DATAGRAM).from_port(source_port());
        let socket =
            from.udp_of_kind(to, kind).await.with_context(|| format!("{} to {to}", client.name()))?;
        Ok(Self { client: client.name().to_owned(), to, socket })
    }

    /// Asks once for the server's name.
    pub(crate) async fn ask(&self) -> Result<String, NetError> {
        self.socket.ask("hostname").await
    }

    /// Keeps asking until this server answers, and notes how long that took; from then on no other may.
    pub(crate) async fn comes_to(&self, case: &Case, server: &str) -> Result<Duration> {
        let what = format!("the flow of {} to {} reaches {server}", self.client, self.to);
        let begin = Instant::now();
        loop {
            let answer = self.ask().await;
            let elapsed = begin.elapsed();
            if answer.as_deref() == Ok(server) {
                case.note(&what, elapsed);
                break;
            }
            ensure!(elapsed < LIMIT, "{what}: not within {elapsed:.1?}, the last answer was {answer:?}");
        }
        let mut answered = 0;
        for _ in 0..100 {
            match self.ask().await {
                Ok(name) if name == server => answered += 1,
                // A slow answer is late for its own question, and early for the next one.
                Err(NetError::Timeout) => {}
                answer => bail!("{what}, and then {answer:?}"),
            }
            if answered == 6 {
                return Ok(begin.elapsed());
            }
        }
        bail!("{what}, and then answers {answered} of 100 questions")
    }

    /// Keeps asking until the application sees ECONNREFUSED.
    pub(crate) async fn is_refused(&self, case: &Case) -> Result<()> {
        let what = format!("the flow of {} to {} is refused", self.client, self.to);
        let begin = Instant::now();
        loop {
            let answer = self.ask().await;
            if refused(&answer) {
                case.note(&what, begin.elapsed());
                return Ok(());
            }
            ensure!(begin.elapsed() < LIMIT, "{what}: saw {answer:?}");
        }
    }
}

impl Flow {
    /// Keeps asking until the application is told that its socket leads nowhere any more.
    async fn is_closed(&self, case: &Case) -> Result<()> {
        let what = format!("the socket of {} to {} is closed", self.client, self.to);
        let begin = Instant::now();
        loop {
            let answer = self.ask().await;
            // ECONNABORTED from a receive, EDESTADDRREQ from a send.
            if matches!(answer, Err(NetError::Reset | NetError::Other(_))) {
                case.note(&what, begin.elapsed());
                return Ok(());
            }
            ensure!(begin.elapsed() < LIMIT, "{what}: saw {answer:?}");
        }
    }
}

/// The flows reach the pod behind the Service `web`; it is replaced by another, and they reach that one. `nodes` are where
/// the two run. Returns the second.
pub(crate) async fn server_cycles(case: &Case, flows: &[Flow], nodes: [usize; 2]) -> Result<PodClient> {
    let first = case.backend("web", nodes[0]).await?;
    for flow in flows {
        flow.comes_to(case, first.name()).await?;
    }
    let second = case.backend("web", nodes[1]).await?;
    // Upstream waits for the second, then removes the first without any grace.
    case.delete_pod(first.name(), Duration::ZERO)?;
    for flow in flows {
        flow.comes_to(case, second.name()).await?;
    }
    Ok(second)
}

async fn node_port(case: Case) -> Result<()> {
    let service = case.service("web", json!({"type": "NodePort"}))?;
    let (near, far) = (service.node_udp(case.node_ip(0)?, 81)?, service.node_udp(case.node_ip(1)?, 81)?);
    let pod = case.pod("client", 0).await?;
    let flows = [
        Flow::open(&pod, near).await?,
        Flow::open(&pod, far).await?,
        Flow::open(&case.outside(0), near).await?,
        Flow::open(&case.outside(1), far).await?,
    ];
    server_cycles(&case, &flows, [1, 1]).await.map(drop)
}

async fn cluster_ip(case: Case) -> Result<()> {
    let service = case.service("web", json!({}))?;
    let to = service.cluster(81)?;
    let pod = case.pod("client", 0).await?;
    let flows = [Flow::open(&pod, to).await?, Flow::open(&case.outside(0), to).await?];
    let second = server_cycles(&case, &flows, [1, 1]).await?;
    // Scaled to nothing and up again: no flow may stay with what was (kubernetes#139628).
    case.delete_pod(second.name(), Duration::ZERO)?;
    for flow in &flows {
        flow.is_refused(&case).await?;
    }
    let third = case.backend("web", 1).await?;
    for flow in &flows {
        flow.comes_to(&case, third.name()).await?;
    }
    Ok(())
}

async fn local_policy(case: Case) -> Result<()> {
    let service = case.service("web", json!({"internalTrafficPolicy": "Local"}))?;
    let to = service.cluster(81)?;
    // Client and servers on one node; endpoints elsewhere are none of this client's.
    let pod = case.pod("client", 1).await?;
    let _elsewhere = case.backend("web", 0).await?;
    // A process of the node with a socket that is not connected: `connect` fails while nobody local is there.
    let host = Flow::of_kind(&case.host(1), to, UdpKind::Unconnected).await?;
    server_cycles(&case, &[Flow::open(&pod, to).await?, host], [1, 1]).await.map(drop)
}

async fn host_network(case: Case) -> Result<()> {
    let service = case.service("web", json!({}))?;
    let (to, host) = (service.cluster(81)?, case.host(0));
    let mut kinds = vec![UdpKind::Connected, UdpKind::Unconnected];
    if to.is_ipv4() {
        kinds.push(UdpKind::Mapped);
    }
    let first = case.backend("web", 1).await?;
    // A host process takes its server when it connects: with the Service empty it would have got none.
    let seen = case.visible("the first server", async || host.udp_hostname(to).await, is(first.name())).await;
    seen?;
    let mut flows = Vec::new();
    for kind in kinds {
        flows.push((kind, Flow::of_kind(&host, to, kind).await?));
    }
    for (_, flow) in &flows {
        flow.comes_to(&case, first.name()).await?;
    }
    let second = case.backend("web", 1).await?;
    case.delete_pod(first.name(), Duration::ZERO)?;
    for (kind, flow) in &mut flows {
        if *kind != UdpKind::Unconnected {
            // The kernel connected it to the server that is gone. It is closed under the client, which connects again: `nc`
            // does so with each datagram.
            flow.is_closed(&case).await?;
            *flow = Flow::of_kind(&host, to, *kind).await?;
        }
        flow.comes_to(&case, second.name()).await?;
    }
    Ok(())
}

async fn initially_unready(case: Case) -> Result<()> {
    let service = case.service("web", json!({}))?;
    let to = service.cluster(81)?;
    let pod = case.pod("client", 0).await?;
    let (outside, server) = (case.outside(0), case.backend("web", 1).await?);
    // Once it was known as ready, it can be known not to be.
    for caller in [pod.caller(), &outside] {
        case.comes_to_reach(caller, to, Protocol::Udp, &[server.name()]).await?;
    }
    case.set_ready(server.name(), false)?;
    for caller in [pod.caller(), &outside] {
        case.refuses(caller, to, Protocol::Udp).await?;
    }
    let (pod_flow, outside_flow) = (Flow::open(&pod, to).await?, Flow::open(&outside, to).await?);
    for flow in [&pod_flow, &outside_flow] {
        flow.is_refused(&case).await?;
    }
    // The client keeps sending while there is nobody (kubernetes#105657): nothing of that may stick.
    for _ in 0..10 {
        ensure!(
            pod_flow.ask().await.is_err() && outside_flow.ask().await.is_err(),
            "an unready endpoint answers"
        );
    }
    case.set_ready(server.name(), true)?;
    for flow in [&pod_flow, &outside_flow] {
        flow.comes_to(&case, server.name()).await?;
    }
    // A process of the node, whose first try was refused, too.
    let host = case.host(0);
    case.visible("a process of the node", async || host.udp_hostname(to).await, is(server.name())).await?;
    Ok(())
}
