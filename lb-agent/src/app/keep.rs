//! Keeping what lies in the bpf file system: what somebody removes is put back, for the next agent to find.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::dataplane::{Datapath, Pins};
use crate::metrics::Metrics;

/// How often it is looked whether everything is where it belongs: what was taken away is back within a second.
pub(super) const REPAIR: Duration = Duration::from_millis(500);

/// Keeps the tables pinned, for as long as it is polled.
pub(super) async fn keep_tables(datapath: Arc<Datapath>, pins: Pins, metrics: Arc<Metrics>) {
    let mut repair = interval(REPAIR);
    repair.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = false;
    loop {
        repair.tick().await;
        match datapath.maps().keep_pinned(&pins) {
            Ok(pinned) => {
                told = false;
                metrics.table_repairs.add(pinned.len() as u64);
                if !pinned.is_empty() {
                    let maps = pinned.join(", ");
                    warn!(maps, "tables were missing from the bpf file system: pinned again");
                }
            }
            Err(error) if !told => {
                told = true;
                let error = &error as &dyn std::error::Error;
                warn!(
                    error,
                    "tables cannot be pinned again: the next agent will not find them (tried again)"
                );
            }
            Err(_) => {}
        }
    }
}
