//! A Deployment is scaled down to nothing and up again.

use std::{collections::BTreeSet, time::Duration};

use super::{Stage, refusals::is_open};
use crate::workload::{NetError, http_get};

const LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn tell(stage: &mut Stage) -> anyhow::Result<()> {
    let Stage { cluster, teller } = stage;
    let order = cluster.pod("snackbar", "component=order")?;
    let ip = cluster.cluster_ip("snackbar", "payment")?;
    is_open(&order, ip, 80).await?;
    for replicas in [0, 3] {
        cluster.api().scale("snackbar", "payment", replicas)?;
        let took = cluster.settle("snackbar").await?;
        let begin = std::time::Instant::now();
        if replicas == 0 {
            let mut outcome = is_open(&order, ip, 80).await;
            // A pod that terminates is chosen until it has ended: better than nobody.
            while outcome.is_ok() && begin.elapsed() < LIMIT {
                tokio::time::sleep(Duration::from_millis(5)).await;
                outcome = is_open(&order, ip, 80).await;
            }
            let what = outcome.as_ref().map_or_else(ToString::to_string, |()| "still answered".to_owned());
            teller.check(
                outcome == Err(NetError::Refused),
                format!("scaled to 0: in every kernel after {took:.1?}, the next connection: {what}"),
            );
            continue;
        }
        let mut seen = BTreeSet::new();
        let mut asked = 0;
        while seen.len() < 3 && asked < 100 {
            seen.insert(http_get(&order, "http://payment/hostname").await?.text());
            asked += 1;
        }
        teller.check(
            seen.len() == 3,
            format!(
                "scaled to {replicas}: in every kernel after {took:.1?}, {asked} requests met {} pods",
                seen.len()
            ),
        );
    }
    Ok(())
}
