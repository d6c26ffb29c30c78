//! `lb-agent status`: is this node's datapath well? Everything comes from the kernel; what a running agent tells of itself is
//! asked of it, where it answers.

mod agent;
mod devices;
mod http;
mod problems;
mod tables;
mod text;

use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use crate::apply::view;
use crate::dataplane::mapped::Access;
use crate::dataplane::{Attachments, Counters, Error, Maps, Pins, xdp_links};
use crate::net::{Depth, DeviceSelection, Follower};
use crate::options::{BindAddress, HEALTHZ_PORT, METRICS_PORT};

pub use agent::Agent;
pub use devices::Device;
pub(crate) use http::get;
pub use problems::Problem;
pub use tables::{Drops, Occupancy, Traffic};

/// How a node is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// Nothing is wrong.
    pub well: bool,
    /// What is wrong, and what is worth knowing.
    pub problems: Vec<Problem>,
    /// Version of this command.
    pub version: &'static str,
    /// The agent.
    pub agent: Agent,
    /// Service ports and endpoints in the tables.
    pub services: Services,
    /// Forwarding mode of the programs: `stack` or `redirect`; `null` when nobody knows.
    pub forwarding: Option<&'static str>,
    /// Seconds since the programs were loaded; `null` when there are none.
    pub programs_loaded_seconds: Option<u64>,
    /// Devices that have programs, or are to have them.
    pub devices: Vec<Device>,
    /// Programs at a cgroup.
    pub sockets: Vec<&'static str>,
    /// How full tables are.
    pub tables: Vec<Occupancy>,
    /// What was carried while this command looked.
    pub traffic: Traffic,
    /// What was dropped or refused, by reason.
    pub drops: Vec<Drops>,
}

/// What the tables serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Services {
    /// Service ports, each family on its own.
    pub ports: usize,
    /// Their endpoints.
    pub endpoints: usize,
    /// Service ports whose clients of the cluster IP are refused for want of an endpoint.
    pub refusing: usize,
}

/// How to look.
#[derive(Clone, Debug)]
pub struct Look {
    /// Where maps and links are pinned.
    pub pins: Pins,
    /// For how long traffic is watched.
    pub window: Duration,
    /// Where the agent tells its health.
    pub healthz: BindAddress<HEALTHZ_PORT>,
    /// Where it tells its metrics and configuration.
    pub metrics: BindAddress<METRICS_PORT>,
    /// Which devices are to have programs, where the agent does not tell.
    pub selection: DeviceSelection,
}

/// Looks.
///
/// # Errors
/// The kernel does not tell what is to be told. That there are no tables is no error, but a problem.
pub async fn status(look: &Look) -> anyhow::Result<Status> {
    let agent = Agent::look(look);
    let follower = Follower::connect(Depth::Devices).context("opening a netlink socket")?;
    let mirror = follower.dump().await.context("asking the kernel for its devices")?;
    let interfaces: Vec<u32> = mirror.links().map(|link| link.index).collect();
    let attached = Attachments::find(&look.pins, follower.handle(), interfaces).await?;
    let selection = agent.selection.clone().unwrap_or_else(|| look.selection.clone());
    let devices = devices::list(&mirror, &attached, &xdp_links(&look.pins)?, &selection);
    let forwarding = match attached.constants(None) {
        Ok(constants) => constants.and_then(|constants| constants.word("FORWARDING")),
        // An agent without an object of its own reads tables all the same.
        Err(Error::NoObject) => None,
        Err(error) => return Err(error.into()),
    };
    let mut status = Status {
        well: false,
        problems: Vec::new(),
        version: env!("CARGO_PKG_VERSION"),
        agent,
        services: Services::default(),
        forwarding: forwarding.map(|number| if number == 0 { "stack" } else { "redirect" }),
        programs_loaded_seconds: devices::youngest(&attached),
        devices,
        sockets: attached.sockets.keys().map(|hook| hook.program()).collect(),
        tables: Vec::new(),
        traffic: Traffic::default(),
        drops: Vec::new(),
    };
    let mut found = problems::of_node(&status, &attached);
    match Maps::open(&look.pins) {
        Ok(maps) => {
            let memory = maps.tables(Access::Read).context("mapping the tables")?;
            let counters = Counters::new(&maps)?;
            let view = view(&memory);
            status.services = tables::services(&view);
            status.agent.counted_seconds = tables::counted(&memory);
            status.tables = tables::occupancy(&maps, &memory, &view);
            let (begin, before) = (Instant::now(), tables::Sample::take(&counters, &view)?);
            tokio::time::sleep(look.window).await;
            let after = tables::Sample::take(&counters, &view)?;
            (status.traffic, status.drops) = tables::between(&before, &after, begin.elapsed());
            found.extend(problems::of_tables(&status));
        }
        Err(error @ (Error::NoTables(_) | Error::Incompatible { .. })) => {
            found.push(Problem::grave(
                error.to_string(),
                "start lb-agent on this node; `lb-agent check` says what hinders it",
            ));
        }
        Err(error) => return Err(error.into()),
    }
    found.sort_by_key(|problem| !problem.grave);
    status.well = !found.iter().any(|problem| problem.grave);
    status.problems = found;
    Ok(status)
}
