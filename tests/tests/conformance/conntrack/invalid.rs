//! Segments outside a connection's window, as a faulty server or a delayed network makes them (kubernetes#74839): connection
//! tracking that calls them invalid, and so lets them through untranslated, has the client reset the connection.

use lb_tests::workload::{Segment, Segments};

use crate::prelude::*;

/// As long no segment of a connection arrives once it is idle.
const QUIET: Duration = Duration::from_millis(50);
/// How far behind the window the forged segments are, as in upstream's server.
const BEHIND: u32 = 100_000;

pub(super) async fn title(case: Case) -> Result<()> {
    let service = case.service("web", json!({"type": "NodePort"}))?;
    let server = case.backend("web", 1).await?;
    let (near, far) = (case.pod("near", 1).await?, case.pod("far", 0).await?);
    let (to, node_port) = (service.cluster(80)?, service.node(case.node_ip(0)?, 80)?);
    case.comes_to_reach(&far, to, Protocol::Tcp, &[server.name()]).await?;
    let (host, outside) = (case.host(0), case.outside(0));
    for (client, to) in
        [(far.caller(), to), (near.caller(), to), (&host, to), (&outside, to), (&outside, node_port)]
    {
        survives(client, to, &server).await.with_context(|| format!("{} at {to}", client.name()))?;
    }
    Ok(())
}

async fn survives(client: &Caller, to: SocketAddr, server: &PodClient) -> Result<()> {
    let wire = Segments::open(&server.pod, server.ip()).await?;
    let flow = client.http_flow(to).await?;
    ensure!(flow.get("/hostname").await? == server.name(), "another server answered");
    let seen = wire.seen(QUIET).await?;
    // An earlier connection may still be closing: this one is the one that began.
    let begin = seen.iter().find(|segment| segment.to_port == 8080 && segment.header.syn);
    let from = begin.context("the server saw no connection begin")?.from;
    let of_client = |segments: Vec<Segment>| -> Vec<Segment> {
        segments.into_iter().filter(|segment| segment.from == from && segment.to_port == 8080).collect()
    };
    let seen = of_client(seen);
    let last = seen.last().context("the server saw nothing of the client")?;
    let mut forged = etherparse::TcpHeader::new(
        last.to_port,
        last.from.port(),
        last.header.acknowledgment_number.wrapping_sub(BEHIND),
        last.header.window_size,
    );
    forged.acknowledgment_number = last.header.sequence_number.wrapping_add(u32::try_from(last.payload)?);
    (forged.ack, forged.psh) = (true, true);
    for _ in 0..10 {
        wire.send(forged.clone(), last.from.ip(), b"boom!!!").await?;
    }
    let answers = of_client(wire.seen(4 * QUIET).await?);
    ensure!(!answers.iter().any(|answer| answer.header.rst), "the client reset the connection: {answers:?}");
    // Its own socket saw them, and said where the window is.
    let expected = |answer: &Segment| {
        answer.from == last.from
            && answer.header.ack
            && answer.header.acknowledgment_number == last.header.acknowledgment_number
    };
    ensure!(answers.iter().any(expected), "no forged segment came to the client's socket: {answers:?}");
    ensure!(flow.get("/hostname").await? == server.name(), "the connection is another one");
    Ok(())
}
