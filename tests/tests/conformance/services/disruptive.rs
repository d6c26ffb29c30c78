//! Agents are killed, the API server goes away: on clusters of their own.

use crate::prelude::*;

/// The titles.
pub(crate) fn titles() -> Vec<Title> {
    vec![
        Title::new("should work after restarting kube-proxy [Disruptive]", agents_restart)
            .once()
            .alone(|builder| builder),
        Title::new("should work after restarting apiserver [Disruptive]", api_server_restarts)
            .once()
            .alone(|builder| builder),
    ]
}

/// A Service in front of one pod a node.
async fn service(case: &Case, app: &str) -> Result<(SocketAddr, Vec<String>)> {
    let service = case.service(app, json!({}))?;
    let mut names = Vec::new();
    for node in 0..case.nodes().len() {
        names.push(case.backend(app, node).await?.name().to_owned());
    }
    Ok((service.cluster(80)?, names))
}

async fn is_served(case: &Case, client: &Caller, (to, names): &(SocketAddr, Vec<String>)) -> Result<()> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for caller in [client, &case.host(0)] {
        case.comes_to_reach(caller, *to, Protocol::Tcp, &names).await?;
    }
    Ok(())
}

async fn agents_restart(mut case: Case) -> Result<()> {
    let client = case.pod("client", 0).await?;
    let (first, second) =
        (service(&case, "restart-proxy-1").await?, service(&case, "restart-proxy-2").await?);
    is_served(&case, &client, &first).await?;
    is_served(&case, &client, &second).await?;
    let stream = client.http_flow(first.0).await?;
    let answered = stream.get("/hostname").await?;
    for node in 0..case.nodes().len() {
        case.own_cluster()?.agent(node).sigkill();
    }
    // Nobody is there to learn of it: what was there works on.
    is_served(&case, &client, &first).await?;
    is_served(&case, &client, &second).await?;
    for node in 0..case.nodes().len() {
        case.own_cluster()?.agent(node).restart()?;
    }
    case.cluster().agents_ready().await?;
    is_served(&case, &client, &first).await?;
    is_served(&case, &client, &second).await?;
    let third = service(&case, "restart-proxy-3").await?;
    is_served(&case, &client, &third).await?;
    ensure!(stream.get("/hostname").await? == answered, "the open connection went to another pod");
    Ok(())
}

async fn api_server_restarts(case: Case) -> Result<()> {
    let client = case.pod("client", 0).await?;
    let first = service(&case, "restart-apiserver-1").await?;
    is_served(&case, &client, &first).await?;
    let server = case.cluster().api_server();
    server.pause();
    // A change that no watch tells of: the history is gone when the server is back.
    let gone = first.1[0].clone();
    case.delete_pod(&gone, Duration::ZERO)?;
    server.compact();
    let rest: Vec<&str> = first.1[1..].iter().map(String::as_str).collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..20 {
        // The endpoint that is gone may still be chosen; the others answer.
        let answer = client.within(Duration::from_millis(100)).hostname(first.0).await;
        ensure!(answer.as_ref().map_or(true, |name| rest.contains(&name.as_str())), "{answer:?}");
    }
    server.resume();
    // Agents come back at a pace of their own (seconds), then all is as the server says.
    let first = (first.0, rest.iter().map(|name| (*name).to_owned()).collect());
    case.eventually("the agents heard of the change", async || {
        Ok(is_served(&case, &client, &first).await.is_ok())
    })
    .await?;
    let second = service(&case, "restart-apiserver-2").await?;
    is_served(&case, &client, &first).await?;
    is_served(&case, &client, &second).await
}
