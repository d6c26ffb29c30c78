//! What is wrong, in words, and what to do about it.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::reason::Reason;
use serde::Serialize;

use super::{Device, Status};
use crate::dataplane::Attachments;

/// A table this full, in hundredths, is worth a word; above the second one it is a problem.
const FILLING: u64 = 75;
const FULL: u64 = 90;
/// Seconds without a count after which the agent stands still. It counts every few seconds.
const STANDS_STILL: u32 = 60;
/// Devices that are named; the others are counted.
const NAMED: usize = 5;
/// Reasons that have nothing to do with Services and their clients: this node's datapath cannot do its work.
const OWN: [Reason; 6] = [
    Reason::ConnectionTableFull,
    Reason::NoFreePort,
    Reason::TableInconsistent,
    Reason::RewriteFailed,
    Reason::RefusalFailed,
    Reason::NoMasqueradeAddress,
];

/// Something that is wrong, or worth knowing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The node is not well; otherwise it is worth knowing.
    pub grave: bool,
    /// What.
    pub says: String,
    /// What to do.
    pub advice: String,
}

impl Problem {
    pub(super) fn grave(says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { grave: true, says: says.into(), advice: advice.into() }
    }

    fn note(says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { grave: false, ..Self::grave(says, advice) }
    }
}

/// What is wrong with agent, programs and devices.
pub(super) fn of_node(status: &Status, attached: &Attachments) -> Vec<Problem> {
    let agent = &status.agent;
    let mut found = Vec::new();
    if !agent.running {
        found.push(Problem::grave(
            "no lb-agent runs: Services go on working as they are, but no change of endpoints, Services or pods is \
             followed",
            "start it; its log says why it ended (`kubectl -n kube-system logs -p` for the one before)",
        ));
    }
    match (agent.health, &agent.silence) {
        (Some("unhealthy"), _) => found.push(Problem::grave(
            "the agent says that it is not healthy: changes do not get into the kernel, or the node is about to be removed",
            "its log says what failed; `curl -s localhost:10256/healthz` says since when",
        )),
        (None, Some(silence)) if agent.running => found.push(Problem::note(
            format!("the agent runs and does not tell its health: {silence}"),
            "name the address with --healthz-bind-address, as the agent was told",
        )),
        _ => {}
    }
    if let Some(late) = agent.late_services.filter(|late| *late > 0) {
        found.push(Problem::grave(
            format!("{late} Services are not in the tables as they should be; the agent tries again"),
            "its log names them and says why; a table may be too small (see --max-services, --max-endpoints)",
        ));
    }
    found.extend(of_devices(&status.devices));
    let mut tags: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for ((_, hook), (_, program)) in &attached.devices {
        tags.entry(hook.program()).or_default().insert(program.tag());
    }
    if let Some((program, _)) = tags.iter().find(|(_, tags)| tags.len() > 1) {
        found.push(Problem::grave(
            format!("devices have {program} of different versions: an upgrade did not finish"),
            "restart the agent, which gives every device its own programs",
        ));
    }
    if !attached.dead_links.is_empty() {
        found.push(Problem::note(
            format!(
                "{} pinned links lead nowhere: their devices have gone, or somebody detached them",
                attached.dead_links.len()
            ),
            "a running agent removes them",
        ));
    }
    found
}

fn of_devices(devices: &[Device]) -> Vec<Problem> {
    let without: Vec<&Device> = devices.iter().filter(|device| !device.missing.is_empty()).collect();
    let named = |role: &str| {
        let of_role: Vec<&&Device> = without.iter().filter(|device| device.role == role).collect();
        let names: Vec<String> = of_role
            .iter()
            .take(NAMED)
            .map(|device| format!("{} ({})", device.name, device.missing.join(", ")))
            .collect();
        let more = of_role.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        (!names.is_empty()).then(|| format!("{}{more}", names.join(", ")))
    };
    let mut found = Vec::new();
    if !devices.iter().any(|device| !device.programs.is_empty()) {
        let advice = "start lb-agent on this node";
        return vec![Problem::grave("no program is attached to any device: nothing is served", advice)];
    }
    if let Some(names) = named("pod") {
        found.push(Problem::grave(
            format!("pods' devices without programs, whose Service traffic is NOT served: {names}"),
            "a running agent attaches them within a second: is it well, and does another tool detach them? Where these \
             are no pods' devices, see --pod-devices",
        ));
    }
    if let Some(names) = named("network") {
        found.push(Problem::grave(
            format!("network devices without programs: node ports and answers from other nodes fail there: {names}"),
            "a running agent attaches them within a second: is it well, and does another tool detach them? Where nobody \
             is behind them, see --net-devices",
        ));
    }
    found
}

/// What is wrong with tables and traffic.
pub(super) fn of_tables(status: &Status) -> Vec<Problem> {
    let mut found = Vec::new();
    if status.services.ports == 0 {
        found.push(Problem::grave(
            "the tables are empty: no Service is known",
            "has the agent listed Services (its log), and is it told a --service-proxy-name that nobody has?",
        ));
    }
    if let Some(seconds) = status.agent.counted_seconds.filter(|seconds| *seconds > STANDS_STILL)
        && status.agent.running
    {
        found.push(Problem::grave(
            format!("the agent runs, but has not gone over the connection tables for {seconds} s"),
            "it stands still, or gets no CPU: look at its log, and restart it",
        ));
    }
    for table in status.tables.iter().filter(|table| table.percent() >= FILLING) {
        let says = format!(
            "the table {} is {} % full ({} of {})",
            table.table,
            table.percent(),
            table.entries,
            table.size
        );
        let advice = match table.table {
            "connections4" | "connections6" => {
                "see who has so many (`lb-agent services`, column ENTRIES), or raise --max-connections and let the tables \
                 be made anew (`lb-agent cleanup`)"
            }
            _ => {
                "raise --max-services or --max-endpoints and let the tables be made anew (`lb-agent cleanup`)"
            }
        };
        found.push(if table.percent() >= FULL {
            Problem::grave(says, advice)
        } else {
            Problem::note(says, advice)
        });
    }
    let own: BTreeSet<&str> = OWN.into_iter().map(Reason::name).collect();
    for drops in status.drops.iter().filter(|drops| drops.now > 0) {
        let says = format!(
            "{} packets in {:.1} s: {} ({})",
            drops.now, status.traffic.seconds, drops.meaning, drops.reason
        );
        let advice = "`lb-agent explain --from CLIENT --to IP:PORT/PROTOCOL` tells why";
        found.push(if own.contains(drops.reason) {
            Problem::grave(says, advice)
        } else {
            Problem::note(says, advice)
        });
    }
    found
}
