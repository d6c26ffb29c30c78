//! Signals: the first one ends the agent in order, the second one at once.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::warn;

/// Exit code after a second signal, that of a process ended by SIGINT.
const INTERRUPTED: i32 = 130;

/// The first SIGTERM or SIGINT.
pub(super) struct Stop(oneshot::Receiver<()>);

impl Stop {
    /// Returns when it came.
    pub(super) async fn first(self) {
        // The sender only goes away by sending.
        let _ = self.0.await;
    }
}

/// Listens for signals from now on.
pub(super) fn signals() -> anyhow::Result<Stop> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        for sender in [Some(sender), None] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            match sender {
                Some(sender) => {
                    // Still starting: whoever waits asks later.
                    let _ = sender.send(());
                }
                None => {
                    warn!("second signal: ending at once");
                    std::process::exit(INTERRUPTED);
                }
            }
        }
    });
    Ok(Stop(receiver))
}
