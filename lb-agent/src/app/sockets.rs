//! Programs at the cgroup: which, for whom, and that they stay there.

mod stale;

use std::sync::Arc;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::bad_configuration;
use super::keep::REPAIR;
use crate::dataplane::{
    Cgroup, Datapath, Error, Pins, SocketAttacher, SocketOptions, detach_sockets, find_cgroup,
};
use crate::metrics::Metrics;
use crate::options::{RunOptions, SocketLb};

pub(super) use stale::StaleSockets;

/// What the flags ask for; `None` when no socket is to be translated.
///
/// # Errors
/// [`super::BadConfiguration`] when there is no such cgroup.
pub(super) fn options(options: &RunOptions) -> anyhow::Result<Option<(SocketOptions, Cgroup)>> {
    let datapath = &options.datapath;
    if datapath.socket_lb == SocketLb::Off {
        return Ok(None);
    }
    let marked = |error: Error| {
        let configured = error.is_of_configuration();
        let error = anyhow::Error::from(error);
        if configured { bad_configuration(error) } else { error }
    };
    let cgroup = match &datapath.cgroup {
        Some(path) => Cgroup::named(path).map_err(|error| bad_configuration(error.into()))?,
        None => {
            let cgroup = find_cgroup().map_err(marked)?;
            if !cgroup.is_root() {
                warn!(
                    cgroup = %cgroup.path().display(),
                    "this shows only a part of the cgroup hierarchy, and only processes in it are served as processes \
                     of the node: mount the host's /sys/fs/cgroup and name it with --cgroup"
                );
            }
            cgroup
        }
    };
    let pods = datapath.socket_lb == SocketLb::All;
    let sockets = SocketOptions::of_this_node(pods, options.timeouts.udp_stream_timeout).map_err(marked)?;
    if !sockets.errors {
        warn!(
            "before Linux 6.1 programs cannot choose the error of a call: processes of the node that connect to a \
             Service without endpoints are told EPERM"
        );
    }
    Ok(Some((sockets, cgroup)))
}

/// Keeps the programs where the flags want them.
pub(super) struct Keeper {
    attacher: Option<SocketAttacher>,
    pins: Pins,
    metrics: Arc<Metrics>,
}

impl Keeper {
    /// For a datapath that was loaded with the same options. Nothing is attached yet.
    ///
    /// # Errors
    /// The datapath lacks the programs.
    pub(super) fn new(
        datapath: &Datapath,
        pins: &Pins,
        sockets: Option<(SocketOptions, Cgroup)>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let attacher = sockets.map(|(_, cgroup)| SocketAttacher::new(datapath, pins, cgroup)).transpose()?;
        Ok(Self { attacher, pins: pins.clone(), metrics })
    }

    /// Attaches the programs, or takes away what an earlier agent attached.
    pub(super) fn attach(&mut self) {
        let Some(attacher) = &mut self.attacher else {
            match detach_sockets(&self.pins) {
                Ok(0) => {}
                Ok(links) => {
                    info!(links, "--socket-lb off: programs of the agent before detached from their cgroup");
                }
                Err(error) => warn!(error = &error as &dyn std::error::Error, "links to the cgroup stay"),
            }
            return;
        };
        let cgroup = attacher.cgroup().path().display().to_string();
        match attacher.attach() {
            Ok(()) => info!(cgroup, "sockets are translated"),
            // Seen to by `keep`.
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                warn!(cgroup, error, "processes of the node are not served yet");
            }
        }
    }

    /// Keeps the programs attached, for as long as it is polled.
    pub(super) async fn keep(mut self) {
        let Some(attacher) = &mut self.attacher else { return };
        let mut repair = interval(REPAIR);
        repair.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            repair.tick().await;
            match attacher.repair() {
                Ok(repaired) => {
                    self.metrics.socket_repairs.add(repaired.len() as u64);
                    for hook in repaired {
                        let program = hook.0.program();
                        warn!(program, "a program was missing from the cgroup: attached again");
                    }
                }
                Err(error) => {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "programs not attached again to the cgroup"
                    );
                }
            }
        }
    }
}
