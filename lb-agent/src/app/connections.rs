//! Removing connections that are over, every few seconds, and counting whose the others are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_common::conntrack::Timeouts;
use lb_common::share::Growth;
use tracing::{debug, info, warn};

use crate::apply::{TablesView, view};
use crate::dataplane::mapped::MappedMemory;
use crate::dataplane::{Connections, Datapath, Map, Shares, Swept};
use crate::metrics::Metrics;

/// Time between sweeps; a flow lives at most this much longer than its timeout.
const INTERVAL: Duration = Duration::from_secs(5);
/// Every how many sweeps answer entries without a forward entry are looked for.
const ORPHANS_EVERY: u32 = 12;

/// Sweeps until it is aborted.
pub(super) async fn sweep(
    datapath: Arc<Datapath>,
    memory: Arc<MappedMemory>,
    timeouts: Timeouts,
    metrics: Arc<Metrics>,
) {
    let mut full = [false; 2];
    for round in 1.. {
        tokio::time::sleep(INTERVAL).await;
        let (of_sweep, counts) = (datapath.clone(), memory.clone());
        let orphans = round % ORPHANS_EVERY == 0;
        let sweep = move || {
            let shares = Shares::begin(&*counts);
            let swept = Connections::new(of_sweep.maps()).sweep(&timeouts, orphans)?;
            if let Err(error) = shares.settle(&*counts, &swept.entries, swept.at) {
                warn!(%error, "shares of the connection tables not counted");
            }
            crate::dataplane::Result::Ok(swept)
        };
        let begun = Instant::now();
        match tokio::task::spawn_blocking(sweep).await {
            Ok(Ok(swept)) => {
                tell_of_fullness(&datapath, &memory, &swept, &mut full);
                let (live, expired, orphans) = (swept.live.flows, swept.expired, swept.orphans);
                if expired + orphans > 0 {
                    debug!(live, expired, orphans, by_state = ?swept.live.by_state, "connections swept");
                }
                metrics.swept(begun.elapsed(), swept);
            }
            Ok(Err(error)) => warn!(error = &error as &dyn std::error::Error, "connections not swept"),
            Err(error) => warn!(%error, "the sweep of connections broke off"),
        }
    }
}

/// Says when a table becomes nearly full, and whose it is; and when it is no more.
fn tell_of_fullness(datapath: &Datapath, memory: &MappedMemory, swept: &Swept, full: &mut [bool; 2]) {
    for (family, map) in [Map::Connections4, Map::Connections6].into_iter().enumerate() {
        let entries = || swept.entries.iter().map(|(service, entries)| (entries[family], *service));
        let (total, size) =
            (entries().map(|(count, _)| count).sum::<u64>(), datapath.maps().max_entries(map));
        let now_full = lb_common::share::growth(size, total as i64, size.into(), 2) != Growth::Free;
        if now_full == full[family] {
            continue;
        }
        full[family] = now_full;
        let table = map.name();
        match entries().max() {
            Some((most, service)) if now_full => {
                let service = name(&view(memory), service);
                warn!(
                    table,
                    total,
                    size,
                    most,
                    service,
                    "the connection table is nearly full: Services that have much of it reuse entries of their own new \
                     flows (see --max-connections)"
                );
            }
            _ => info!(table, total, size, "the connection table has room again"),
        }
    }
}

/// The name of the Service port with that index.
fn name(view: &TablesView, index: u32) -> String {
    let found = view.services.iter().find(|service| service.index == index);
    found.and_then(|service| service.key.as_ref()).map_or_else(|| index.to_string(), ToString::to_string)
}
