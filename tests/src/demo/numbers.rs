//! Endpoints change under a client that never stops asking.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::core::v1::Pod;

use super::{Stage, snackbar::list};
use crate::workload::Load;

const LIMIT: Duration = Duration::from_secs(20);

pub(super) async fn tell(stage: &mut Stage) -> anyhow::Result<()> {
    let Stage { cluster, teller } = stage;
    let web = cluster.pod("numbers", "app=web")?;
    let old = cluster.pods("numbers", "app=numbers-api")?;
    teller.note(
        "web asks http://numbers-api on a new connection every few milliseconds. Then every pod of it is deleted. While \
         they terminate and no successor is ready, they go on being chosen; the moment one is ready, one 64-bit store \
         switches the Service to the new set, and no packet ever sees half of it.",
    );
    let load = Load::http("http://numbers-api/hostname").interval(Duration::from_millis(3)).start(&web);
    load.wait_for(100, LIMIT).await?;
    for pod in &old {
        cluster.api().delete::<Pod>("numbers", pod.name())?;
    }
    let took = cluster.settle("numbers").await?;
    let now = load.report().successes();
    // The request under way, and one more to be sure.
    let at_change = load.wait_for(now + 2, LIMIT).await?;
    load.wait_for(at_change.successes() + 150, LIMIT).await?;
    let report = load.stop().await;
    let new = cluster.pods("numbers", "app=numbers-api")?;
    let addresses = |pods: &[crate::lab::KubePod]| -> BTreeSet<_> {
        pods.iter().flat_map(|pod| pod.addresses().iter().copied()).collect()
    };
    let (before, after) = (addresses(&old), addresses(&new));
    teller.check(
        before.is_disjoint(&after) && new.len() == old.len(),
        format!("new pods with new addresses: {} instead of {} ({took:.1?})", list(&after), list(&before)),
    );
    teller.check(
        report.failures.is_empty() && report.requests() > 250,
        format!(
            "{} requests, {} lost; longest time without an answer {:.1?}",
            report.requests(),
            report.failures.len(),
            report.longest_gap
        ),
    );
    for failure in report.failures.iter().take(3) {
        teller.raw(&format!("lost: at {:.1?} after {:.1?}: {}", failure.at, failure.after, failure.reason));
    }
    let late = |pod: &crate::lab::KubePod| {
        let count =
            |report: &crate::workload::LoadReport| report.by_backend.get(pod.name()).copied().unwrap_or(0);
        count(&report) - count(&at_change)
    };
    let (to_old, to_new): (u64, u64) = (old.iter().map(late).sum(), new.iter().map(late).sum());
    teller.check(
        to_old == 0 && to_new >= 150,
        format!("after the change {to_new} requests went to new pods, {to_old} to old ones"),
    );
    Ok(())
}
