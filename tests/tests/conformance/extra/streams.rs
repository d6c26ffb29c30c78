//! Agents die and are replaced under many streams.

use std::{cell::RefCell, collections::BTreeMap};

use futures::future::try_join_all;
use lb_tests::lab::HttpFlow;

use crate::{conntrack::Flow, prelude::*};

/// The titles.
pub(super) fn titles() -> Vec<Title> {
    vec![
        Title::new("should reset no stream when agents are killed, and when all are replaced", survive)
            .each_family()
            .alone(|builder| builder),
    ]
}

/// Streams of each client.
const STREAMS: usize = 100;
/// Datagram flows of each client, each with a source port of its own.
const FLOWS: usize = 10;

/// An open stream, and who is at its other end.
struct Stream {
    client: String,
    flow: HttpFlow,
    server: String,
}

async fn open(client: &Caller, to: SocketAddr) -> Result<Stream> {
    let flow = client.http_flow(to).await.with_context(|| format!("{} at {to}", client.name()))?;
    let server = flow.get("/hostname").await?;
    Ok(Stream { client: client.name().to_owned(), flow, server })
}

/// Every stream answers, and from where it did.
async fn nothing_moved(streams: &[Stream], flows: &[(Flow, String)], when: &str) -> Result<()> {
    for Stream { client, flow, server } in streams {
        let answer = flow.get("/hostname").await;
        ensure!(answer.as_ref() == Ok(server), "{when}: a stream of {client} to {server} says {answer:?}");
    }
    for (flow, server) in flows {
        let answer = answer(flow).await;
        ensure!(answer.as_ref() == Ok(server), "{when}: a datagram flow to {server} says {answer:?}");
    }
    Ok(())
}

/// What a flow is answered, sooner or later: on a busy machine an answer may come to the next question only.
async fn answer(flow: &Flow) -> Result<String, NetError> {
    for _ in 0..50 {
        match flow.ask().await {
            Err(NetError::Timeout) => {}
            answer => return answer,
        }
    }
    Err(NetError::Timeout)
}

async fn survive(mut case: Case) -> Result<()> {
    let service = case.service("web", json!({"type": "NodePort"}))?;
    let mut names = Vec::new();
    for node in [0, 0, 1, 2] {
        names.push(case.backend("web", node).await?.name().to_owned());
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (near, far) = (case.pod("near", 0).await?, case.pod("far", 2).await?);
    let (tcp, udp) = (service.cluster(80)?, service.cluster(81)?);
    let node = case.node_ip(0)?;
    let (node_tcp, node_udp) = (service.node(node, 80)?, service.node_udp(node, 81)?);
    let ways = [
        (near.caller().clone(), tcp, udp),
        (far.caller().clone(), tcp, udp),
        (case.host(0), tcp, udp),
        (case.outside(0), node_tcp, node_udp),
    ];
    let (mut streams, mut flows) = (Vec::new(), Vec::new());
    for (caller, tcp, udp) in &ways {
        case.comes_to_reach(caller, *tcp, Protocol::Tcp, &names).await?;
        streams.extend(try_join_all((0..STREAMS).map(|_| open(caller, *tcp))).await?);
        for _ in 0..FLOWS {
            let flow = Flow::open(caller, *udp).await?;
            let server = answer(&flow).await?;
            flows.push((flow, server));
        }
    }
    nothing_moved(&streams, &flows, "at first").await?;
    // Meanwhile, new connections all the time.
    let asked: RefCell<BTreeMap<String, u32>> = RefCell::default();
    let load = async {
        loop {
            for (caller, to, _) in &ways {
                let key =
                    caller.hostname(*to).await.unwrap_or_else(|error| format!("{}: {error}", caller.name()));
                *asked.borrow_mut().entry(key).or_default() += 1;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let nodes = case.nodes().len();
    let replaced = async {
        for node in 0..nodes {
            case.own_cluster()?.agent(node).sigkill();
        }
        nothing_moved(&streams, &flows, "without agents").await?;
        for node in 0..nodes {
            case.own_cluster()?.agent(node).restart()?;
        }
        case.cluster().agents_ready().await?;
        nothing_moved(&streams, &flows, "with new agents").await?;
        // A rolling upgrade: node by node, as a DaemonSet does it, each ending in order.
        for node in 0..nodes {
            let agent = case.own_cluster()?.agent(node);
            agent.sigterm().await?;
            agent.restart()?;
            agent.wait_ready().await?;
            nothing_moved(&streams, &flows, "after a replaced agent").await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        done = replaced => done?,
        () = load => {}
    }
    let asked = asked.into_inner();
    let total: u32 = asked.values().sum();
    println!(
        "{} streams and {} datagram flows kept over 6 ends of agents, {}; {total} new connections: {asked:?}",
        streams.len(),
        flows.len(),
        case.variant()
    );
    ensure!(asked.keys().all(|key| names.contains(&key.as_str())), "new connections failed: {asked:?}");
    // What begins now is served by the new agents.
    let fresh = case.backend("web", 1).await?;
    let with_fresh: Vec<&str> = names.iter().copied().chain([fresh.name()]).collect();
    for (caller, to, _) in &ways {
        case.comes_to_reach(caller, *to, Protocol::Tcp, &with_fresh).await?;
    }
    nothing_moved(&streams, &flows, "with another endpoint").await
}
