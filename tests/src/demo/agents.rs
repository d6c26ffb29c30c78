//! The agent dies; the kernel does not care.

use std::time::{Duration, Instant};

use super::Stage;
use crate::workload::{HttpRequest, Load};

const LIMIT: Duration = Duration::from_secs(20);

pub(super) async fn kill(stage: &mut Stage) -> anyhow::Result<()> {
    let Stage { cluster, teller } = stage;
    let web = cluster.pod("numbers", "app=web")?;
    let node = web.node().clone();
    let position = cluster.lab().nodes().iter().position(|other| other.name() == node.name()).unwrap_or(0);
    teller.note(&format!(
        "Programs, their links to the devices and all tables are pinned on the bpf file system: they belong to the \
         kernel, not to the agent. web on {} keeps asking, on new connections and on one that stays open.",
        node.name()
    ));
    let url = "http://numbers-api/hostname";
    let mut stream = HttpRequest::get(url).connect(&web).await?;
    let behind = stream.get("/hostname").await?.text();
    let load = Load::http(url).interval(Duration::from_millis(2)).start(&web);
    load.wait_for(100, LIMIT).await?;
    let pid = cluster.agent(position).pid();
    cluster.agent(position).sigkill();
    let without = load.report().requests();
    let killed = Instant::now();
    load.wait_for(without + 200, LIMIT).await?;
    let alone = load.report().requests() - without;
    let alone_for = killed.elapsed();
    let still = stream.get("/hostname").await.map(|answer| answer.text());
    teller.check(
        load.report().failures.is_empty(),
        format!("SIGKILL of process {pid}: {alone} requests answered in {alone_for:.1?} without an agent"),
    );
    cluster.agent(position).restart()?;
    cluster.agent(position).wait_ready().await?;
    let back = load.report().requests();
    load.wait_for(back + 150, LIMIT).await?;
    let report = load.stop().await;
    teller.check(
        report.failures.is_empty(),
        format!(
            "a new agent, process {}, took over the tables: {} requests altogether, {} failed, longest gap {:.1?}",
            cluster.agents()[position].pid(),
            report.requests(),
            report.failures.len(),
            report.longest_gap
        ),
    );
    for failure in report.failures.iter().take(3) {
        teller.raw(&format!("failed: at {:.1?} after {:.1?}: {}", failure.at, failure.after, failure.reason));
    }
    let after = stream.get("/hostname").await.map(|answer| answer.text());
    teller.check(
        still.as_ref() == Ok(&behind) && after.as_ref() == Ok(&behind),
        format!("the connection opened before is still the same one to {behind}"),
    );
    let settled = cluster.settle("numbers").await?;
    teller.check(true, format!("the new agent's tables agree with the API server ({settled:.1?})"));
    Ok(())
}
