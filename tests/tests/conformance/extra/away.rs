//! The API server is away for a while: it refuses, it hangs. What agents know is served, nothing is torn down, and what
//! changed meanwhile arrives afterwards.

use std::{cell::RefCell, collections::BTreeMap};

use k8s_openapi::api::core::v1::Service;

use crate::prelude::*;

/// The titles.
pub(super) fn titles() -> Vec<Title> {
    vec![
        Title::new("should serve what is known while the API server refuses connections", |case| {
            away(case, Trouble::Refuses)
        })
        .once()
        .alone(|builder| builder),
        Title::new("should serve what is known while the API server hangs", |case| {
            away(case, Trouble::Hangs)
        })
        .once()
        .alone(|builder| builder),
        Title::new("should serve what is known while the API server answers with errors", |case| {
            away(case, Trouble::Errs)
        })
        .once()
        .alone(|builder| builder),
    ]
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    /// Connections are reset.
    Refuses,
    /// Connections stand, answers do not come.
    Hangs,
    /// Every answer is 503.
    Errs,
}

/// How long it is away; upstream's case is ten minutes, which tells no more.
const AWAY: Duration = Duration::from_secs(3);
/// How often each client asks meanwhile, at least.
const ROUNDS: u32 = 15;
/// Agents try again at a pace of their own, and give up a request that hangs.
const BACK: Duration = Duration::from_secs(15);

async fn away(mut case: Case, trouble: Trouble) -> Result<()> {
    let service = case.service("web", json!({"type": "NodePort"}))?;
    let doomed = case.service("doomed", json!({"selector": {"app": "web"}}))?;
    let backends = [case.backend("web", 0).await?, case.backend("web", 1).await?];
    let names = backends.each_ref().map(|pod| pod.name().to_owned());
    let known = [names[0].as_str(), names[1].as_str()];
    let pod = case.pod("client", 2).await?;
    let (to, gone) = (service.cluster(80)?, doomed.cluster(80)?);
    let node_port = service.node(case.node_ip(2)?, 80)?;
    let ways = [
        (pod.caller().clone(), to),
        (pod.caller().clone(), gone),
        (case.host(2), to),
        (case.outside(0), node_port),
    ];
    for (caller, to) in &ways {
        case.comes_to_reach(caller, *to, Protocol::Tcp, &known).await?;
    }
    // Nobody shall learn of these: a pod that is behind the Service from now on, a Service that is none any more.
    let hidden = {
        let server = case.cluster().api_server();
        match trouble {
            Trouble::Refuses => server.pause(),
            Trouble::Hangs => {
                server.slow_down(2 * AWAY);
                server.break_watches();
            }
            Trouble::Errs => {
                server.fail_next(u32::MAX, 503);
                server.break_watches();
            }
        }
        // Watches that break in mid-event have ended when the next event comes.
        tokio::time::sleep(Duration::from_millis(100)).await;
        // The lab's kubelets and controllers do not go through the server's door. Attaching is the agents' own business.
        let hidden = case.backend("web", 1).await?;
        case.api().delete::<Service>(case.namespace(), doomed.name())?;
        hidden
    };
    let begin = Instant::now();
    let asked: RefCell<BTreeMap<String, u32>> = RefCell::default();
    let (mut restarted, mut rounds) = (false, 0);
    while begin.elapsed() < AWAY || rounds < ROUNDS {
        rounds += 1;
        for (caller, to) in &ways {
            let key = caller
                .hostname(*to)
                .await
                .unwrap_or_else(|error| format!("{} at {to}: {error}", caller.name()));
            *asked.borrow_mut().entry(key).or_default() += 1;
        }
        // An agent that starts now knows nothing, and takes nothing away (S-84).
        if !restarted && begin.elapsed() > AWAY / 3 {
            case.own_cluster()?.agent(2).restart()?;
            restarted = true;
        }
    }
    let asked = asked.into_inner();
    ensure!(asked.keys().all(|key| known.contains(&key.as_str())), "while it was away: {asked:?}");
    let server = case.cluster().api_server();
    match trouble {
        Trouble::Refuses => server.resume(),
        Trouble::Hangs => server.slow_down(Duration::ZERO),
        Trouble::Errs => server.fail_next(0, 503),
    }
    let begin = Instant::now();
    let all = [known[0], known[1], hidden.name()];
    loop {
        let reached = case.reaches(&pod, to, Protocol::Tcp, &all).await;
        // No Service has the address any more: silence (S-23).
        let is_gone = silent(&pod.within(Duration::from_millis(100)).connect(gone).await);
        if reached.is_ok() && is_gone {
            break;
        }
        ensure!(begin.elapsed() < BACK, "after {:.1?}: {reached:?}, gone: {is_gone}", begin.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!(
        "API server away ({trouble:?}): {asked:?}; changes known {:.1?} after its return",
        begin.elapsed()
    );
    for (caller, to) in [&ways[0], &ways[2], &ways[3]] {
        case.reaches(caller, *to, Protocol::Tcp, &all).await?;
    }
    case.cluster().agents_ready().await?;
    // And at the usual pace again.
    let last = case.backend("web", 2).await?;
    let all = [all[0], all[1], all[2], last.name()];
    for (caller, to) in [&ways[0], &ways[2], &ways[3]] {
        case.comes_to_reach(caller, *to, Protocol::Tcp, &all).await?;
    }
    Ok(())
}
