//! Asks, and compares what came of it with what the model says.

use std::collections::BTreeMap;

use lb_tests::oracle::{Attempt, Client, Source, Transport, Verdict, World, answer};

use super::{objects::Objects, row::Row, site::Site};
use crate::prelude::*;

/// How long an answer, or a refusal, may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// After this there will be none.
const SILENCE: Duration = Duration::from_millis(300);
/// The same for an IPv6 connection: Linux heeds a refusal of its second SYN only, a second after the first.
const LONG_SILENCE: Duration = Duration::from_millis(1300);
/// Connections at least, however soon every endpoint has answered: somebody else may still do.
const LEAST: usize = 8;
/// Connections at most for each endpoint that shall answer: four of them stay unmet by chance once in 10^12 rows.
const MOST: usize = 30;

/// Whether a row comes out as the model says.
///
/// # Errors
/// It does not; says what was seen instead.
pub(crate) async fn agrees(site: &Site, row: &Row, objects: &Objects) -> Result<()> {
    let (caller, client) = site.client(row)?;
    let world = World { service: &objects.service, slices: &objects.slices, machines: &site.machines };
    let attempt = Attempt { from: client.clone(), to: objects.to, transport: row.transport };
    let verdict = answer(&world, &attempt);
    let compared = match &verdict {
        Verdict::Refused => refused_at(caller, row, objects.to).await,
        Verdict::Dropped => silent_at(caller, row, objects.to).await,
        Verdict::Untouched => bail!("no row asks for what is not the Service's"),
        Verdict::Reaches { endpoints, sticky } => {
            reaches(site, caller, &client, row, objects.to, endpoints, sticky.is_some()).await
        }
    };
    compared.with_context(|| format!("{} from {client:?}, model: {verdict:?}", objects.to))
}

async fn refused_at(caller: &Caller, row: &Row, to: SocketAddr) -> Result<()> {
    let seen = once(&caller.within(PATIENCE), row, to).await;
    ensure!(matches!(seen, Err(NetError::Refused)), "expected a refusal, saw {seen:?}");
    Ok(())
}

async fn silent_at(caller: &Caller, row: &Row, to: SocketAddr) -> Result<()> {
    let is_slow = row.family == IpFamily::V6 && row.transport == Transport::Tcp;
    let seen = once(&caller.within(if is_slow { LONG_SILENCE } else { SILENCE }), row, to).await;
    ensure!(matches!(seen, Err(NetError::Timeout)), "expected no answer, saw {seen:?}");
    Ok(())
}

async fn reaches(
    site: &Site,
    caller: &Caller,
    client: &Client,
    row: &Row,
    to: SocketAddr,
    endpoints: &BTreeMap<SocketAddr, Source>,
    sticky: bool,
) -> Result<()> {
    let own = match client {
        Client::Pod { address, .. } | Client::Host { address, .. } | Client::Outside { address, .. } => {
            *address
        }
    };
    let caller = caller.within(PATIENCE);
    let mut met = BTreeMap::new();
    for time in 1..=MOST * endpoints.len() {
        let (name, seen) = once(&caller, row, to).await.with_context(|| format!("connection {time}"))?;
        let pod = site.endpoints.iter().find(|pod| pod.name() == name);
        let pod = pod.with_context(|| format!("{name} answered, which is no endpoint"))?;
        let address = row.family.pick(pod.pod.addresses())?;
        let expected = endpoints.iter().find(|(endpoint, _)| endpoint.ip() == address);
        let (endpoint, source) = expected.with_context(|| format!("{name} answered, which must not"))?;
        let is_right = match source {
            Source::Client => seen.ip() == own,
            Source::Node(node) => site.is_of_node(seen.ip(), node),
            Source::NotItself => seen.ip() != own,
        };
        ensure!(is_right, "{name} saw {seen} as the client, expected {source:?}");
        *met.entry(endpoint).or_insert(0) += 1;
        ensure!(!sticky || met.len() == 1, "affinity: one client met {met:?}");
        if time >= LEAST && (sticky || met.len() == endpoints.len()) {
            return Ok(());
        }
    }
    bail!("only {met:?} answered")
}

/// One new connection: who answers, and which client it sees.
async fn once(caller: &Caller, row: &Row, to: SocketAddr) -> Result<(String, SocketAddr), NetError> {
    let (name, client) = match row.transport {
        Transport::Tcp => {
            let flow = caller.http_flow(to).await?;
            (flow.get("/hostname").await?, flow.get("/clientip").await?)
        }
        Transport::Udp => {
            let flow = caller.udp(to).await?;
            (flow.ask("hostname").await?, flow.ask("clientip").await?)
        }
    };
    let client = client.parse().map_err(|error| NetError::BadAnswer(format!("{client}: {error}")))?;
    Ok((name, client))
}
