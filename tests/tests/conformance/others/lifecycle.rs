//! Pods that terminate, and pods that take over from others.

use std::{cell::RefCell, collections::BTreeMap};

use crate::prelude::*;

/// The titles.
pub(super) fn titles() -> Vec<Title> {
    vec![
        Title::new("should be able to connect from a Pod to a terminating Pod", to_terminating).each_family(),
        Title::new("should be able to connect to other Pod from a terminating Pod", from_terminating).each_family(),
        Title::new(
            "should be able to have zero downtime on a Blue Green deployment using Services and Readiness Gates",
            blue_green,
        )
        .each_family(),
    ]
}

async fn to_terminating(case: Case) -> Result<()> {
    let service = case.service("web", json!({}))?;
    let server = case.lingering_backend("web", 1).await?;
    let client = case.pod("pause-pod-1", 0).await?;
    let ways = [SocketAddr::new(server.ip(), 8080), service.cluster(80)?];
    for to in ways {
        case.comes_to_reach(&client, to, Protocol::Tcp, &[server.name()]).await?;
    }
    case.terminate(&server)?;
    for _ in 0..5 {
        for to in ways {
            case.stays("the terminating pod", 5, async || client.hostname(to).await, is(server.name()))
                .await?;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn from_terminating(case: Case) -> Result<()> {
    let service = case.service("web", json!({}))?;
    let server = case.backend("web", 1).await?;
    // The client is a server, too, so that it has something to terminate.
    let client = case.lingering_backend("pause", 0).await?;
    let ways = [SocketAddr::new(server.ip(), 8080), service.cluster(80)?];
    for to in ways {
        case.comes_to_reach(&client, to, Protocol::Tcp, &[server.name()]).await?;
    }
    case.terminate(&client)?;
    for _ in 0..5 {
        for to in ways {
            case.stays("the server", 5, async || client.hostname(to).await, is(server.name())).await?;
        }
        case.reaches(&client, service.cluster(81)?, Protocol::Udp, &[server.name()]).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn blue_green(case: Case) -> Result<()> {
    let service = case.service("web", json!({}))?;
    let (blue, green) = (case.backend("web", 0).await?, case.backend("web", 1).await?);
    case.set_ready(green.name(), false)?;
    let (client, to) = (case.pod("client-pod-1", 2).await?, service.cluster(80)?);
    let host = case.host(2);
    for caller in [client.caller(), &host] {
        case.comes_to_reach(caller, to, Protocol::Tcp, &[blue.name()]).await?;
        case.stays("blue only", 5, async || caller.hostname(to).await, is(blue.name())).await?;
    }
    // While the one takes over from the other, and back, nobody may be turned away.
    let asked: RefCell<BTreeMap<String, u32>> = RefCell::default();
    let load = async {
        loop {
            for caller in [client.caller(), &host] {
                let answer = caller.hostname(to).await;
                let key = answer.unwrap_or_else(|error| format!("failed: {error}"));
                *asked.borrow_mut().entry(key).or_default() += 1;
            }
        }
    };
    let switches = async {
        let mut pair = [&green, &blue];
        for _ in 0..4 {
            let [next, last] = pair;
            // The gate of the next is opened, the slices say so, the gate of the last is closed.
            case.set_ready(next.name(), true)?;
            is_listed(&case, next, true).await?;
            case.set_ready(last.name(), false)?;
            is_listed(&case, last, false).await?;
            for caller in [client.caller(), &host] {
                // Six in a row, as upstream counts; five more to be sure.
                case.comes_to_reach(caller, to, Protocol::Tcp, &[next.name()]).await?;
                case.stays("the next only", 11, async || caller.hostname(to).await, is(next.name())).await?;
            }
            pair = [last, next];
        }
        anyhow::Ok(())
    };
    tokio::select! {
        done = switches => done?,
        () = load => {}
    }
    let asked = asked.into_inner();
    println!("blue and green, {}: {asked:?}", case.variant());
    ensure!(asked.keys().all(|key| !key.starts_with("failed")), "requests failed: {asked:?}");
    ensure!(asked.len() == 2, "only one of both was met: {asked:?}");
    Ok(())
}

/// The pod's endpoint is in the slices, ready or not.
async fn is_listed(case: &Case, pod: &PodClient, ready: bool) -> Result<()> {
    case.eventually("the slices say so", async || {
        let slices = case.api().values("endpointslices", Some(case.namespace()))?;
        let ip = pod.ip().to_string();
        let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        let own = endpoints.filter(|endpoint| endpoint["addresses"][0] == ip);
        Ok(own.map(|endpoint| endpoint["conditions"]["ready"] == ready).eq([true]))
    })
    .await
}
