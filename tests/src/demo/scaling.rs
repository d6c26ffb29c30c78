//! A Deployment is scaled down to nothing and up again.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

use super::{Stage, refusals::is_open};
use crate::workload::{NetError, http_get};

pub(super) async fn tell(stage: &mut Stage) -> anyhow::Result<()> {
    let Stage { cluster, teller } = stage;
    let order = cluster.pod("snackbar", "component=order")?;
    let ip = cluster.cluster_ip("snackbar", "payment")?;
    is_open(&order, ip, 80).await?;
    for replicas in [0, 3] {
        cluster.api().scale("snackbar", "payment", replicas)?;
        if replicas == 0 {
            // Until they have ended, terminating pods are still chosen: better than nobody.
            let labels = "component=payment";
            let gone = || Ok(cluster.api().list::<Pod>(Some("snackbar"), labels)?.is_empty());
            cluster.eventually("the pods of payment have ended", gone).await?;
            let took = cluster.settle("snackbar").await?;
            let before = cluster.tables(order.node())?.dropped("no_endpoint");
            let outcome = is_open(&order, ip, 80).await;
            let counted = cluster.tables(order.node())?.dropped("no_endpoint") - before;
            let what = outcome.as_ref().map_or_else(ToString::to_string, |()| "still answered".to_owned());
            teller.check(
                outcome == Err(NetError::Refused) && counted > 0,
                format!("scaled to 0: in every kernel {took:.1?} after the pods' end; {what}, counted as no_endpoint"),
            );
            continue;
        }
        let took = cluster.settle("snackbar").await?;
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
