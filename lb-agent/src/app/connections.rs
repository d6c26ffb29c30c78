//! Removing connections that are over, every few seconds.

use std::sync::Arc;
use std::time::Duration;

use lb_common::conntrack::Timeouts;
use tracing::{debug, warn};

use crate::dataplane::{Connections, Datapath};

/// Time between sweeps; a flow lives at most this much longer than its timeout.
const INTERVAL: Duration = Duration::from_secs(5);
/// Every how many sweeps answer entries without a forward entry are looked for.
const ORPHANS_EVERY: u32 = 12;

/// Sweeps until it is aborted.
pub(super) async fn sweep(datapath: Arc<Datapath>, timeouts: Timeouts) {
    for round in 1.. {
        tokio::time::sleep(INTERVAL).await;
        let datapath = datapath.clone();
        let orphans = round % ORPHANS_EVERY == 0;
        let sweep = move || Connections::new(datapath.maps()).sweep(&timeouts, orphans);
        match tokio::task::spawn_blocking(sweep).await {
            Ok(Ok(swept)) => {
                let (live, expired, orphans) = (swept.live.flows, swept.expired, swept.orphans);
                if expired + orphans > 0 {
                    debug!(live, expired, orphans, by_state = ?swept.live.by_state, "connections swept");
                }
            }
            Ok(Err(error)) => warn!(error = &error as &dyn std::error::Error, "connections not swept"),
            Err(error) => warn!(%error, "the sweep of connections broke off"),
        }
    }
}
