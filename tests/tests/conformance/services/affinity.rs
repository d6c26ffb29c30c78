//! Session affinity by client address. `pub(crate)` for the suites that repeat it at other frontends.

use std::collections::BTreeSet;

use crate::prelude::*;

/// How many answers in a row have to come from the same pod, as upstream counts.
const CONFIRM: usize = 15;

/// The titles.
pub(crate) fn titles() -> Vec<Title> {
    vec![
        Title::new("should have session affinity work for service with type clusterIP [LinuxOnly]", |case| {
            works(case, "ClusterIP")
        })
        .each_family(),
        Title::new(
            "should have session affinity timeout work for service with type clusterIP [LinuxOnly]",
            |case| times_out(case, "ClusterIP"),
        )
        .each_family(),
        Title::new(
            "should be able to switch session affinity for service with type clusterIP [LinuxOnly]",
            |case| switches(case, "ClusterIP"),
        )
        .each_family(),
        Title::new("should have session affinity work for NodePort service [LinuxOnly]", |case| {
            works(case, "NodePort")
        })
        .each_family(),
        Title::new("should have session affinity timeout work for NodePort service [LinuxOnly]", |case| {
            times_out(case, "NodePort")
        })
        .each_family(),
        Title::new("should be able to switch session affinity for NodePort service [LinuxOnly]", |case| {
            switches(case, "NodePort")
        })
        .each_family(),
    ]
}

/// Asks so many times and returns who answered.
async fn answers(client: &Caller, to: SocketAddr, times: usize) -> Result<BTreeSet<String>, NetError> {
    let mut names = BTreeSet::new();
    for _ in 0..times {
        names.insert(client.hostname(to).await?);
    }
    Ok(names)
}

/// All requests of a client go to one pod, soon and from then on. Returns its name.
pub(crate) async fn sticks(case: &Case, client: &Caller, to: SocketAddr) -> Result<String> {
    // The first answer decides; before the change is visible the answers differ.
    let begin = Instant::now();
    loop {
        let names = answers(client, to, CONFIRM).await?;
        if names.len() == 1 {
            break;
        }
        ensure!(begin.elapsed() < LIMIT, "{} met {names:?} at {to}, wanted one of them only", client.name());
    }
    let first = client.hostname(to).await?;
    case.stays("affinity", 15, async || client.hostname(to).await, is(&first)).await?;
    Ok(first)
}

/// Requests of a client go to more than one pod.
pub(crate) async fn spreads(case: &Case, client: &Caller, to: SocketAddr) -> Result<()> {
    let first = client.hostname(to).await?;
    let other = |answer: &Result<String, NetError>| answer.as_ref().is_ok_and(|name| *name != first);
    case.visible("requests go to several pods", async || client.hostname(to).await, other).await?;
    Ok(())
}

/// A Service in front of three pods, and where its clients ask.
struct Setting {
    service: Svc,
    clients: Vec<(Caller, SocketAddr)>,
}

async fn setting(case: &Case, kind: &str, spec: Value) -> Result<Setting> {
    let mut wanted = json!({"type": kind});
    for (key, value) in spec.as_object().into_iter().flatten() {
        wanted[key] = value.clone();
    }
    // The pods first: the Service then learns of all three at once, and none can be missed by counting too early.
    for node in 0..3 {
        case.backend("web", node).await?;
    }
    let service = case.service("web", wanted)?;
    let pod = case.pod("client", 0).await?;
    let clients = if kind == "ClusterIP" {
        vec![(pod.caller().clone(), service.cluster(80)?), (case.host(1), service.cluster(80)?)]
    } else {
        let to = service.node(case.node_ip(0)?, 80)?;
        vec![(pod.caller().clone(), to), (case.outside(0), to), (case.host(1), to)]
    };
    for (client, to) in &clients {
        case.visible("the first answer", async || client.hostname(*to).await, Result::is_ok).await?;
    }
    Ok(Setting { service, clients })
}

async fn works(case: Case, kind: &str) -> Result<()> {
    let Setting { clients, .. } = setting(&case, kind, json!({"sessionAffinity": "ClientIP"})).await?;
    for (client, to) in &clients {
        sticks(&case, client, *to).await?;
    }
    Ok(())
}

async fn times_out(case: Case, kind: &str) -> Result<()> {
    const TIMEOUT: u64 = 2;
    let spec = json!({
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": TIMEOUT}},
    });
    let Setting { clients, .. } = setting(&case, kind, spec).await?;
    let (client, to) = &clients[0];
    let first = sticks(&case, client, *to).await?;
    // Another pod within ten tries, each after the timeout has passed: one in three goes to the same by chance.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(1000 * TIMEOUT + 300)).await;
        if client.hostname(*to).await? != first {
            return Ok(());
        }
    }
    bail!("still {first}, ten timeouts of {TIMEOUT} s later")
}

async fn switches(case: Case, kind: &str) -> Result<()> {
    let Setting { service, clients } = setting(&case, kind, json!({"sessionAffinity": "None"})).await?;
    for (client, to) in &clients {
        spreads(&case, client, *to).await?;
    }
    service.patch(json!({"sessionAffinity": "ClientIP"}))?;
    for (client, to) in &clients {
        sticks(&case, client, *to).await?;
    }
    service.patch(json!({"sessionAffinity": "None"}))?;
    for (client, to) in &clients {
        spreads(&case, client, *to).await?;
    }
    service.patch(json!({"sessionAffinity": "ClientIP"}))?;
    for (client, to) in &clients {
        sticks(&case, client, *to).await?;
    }
    Ok(())
}
