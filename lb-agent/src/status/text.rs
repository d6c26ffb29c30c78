//! A node's state on one screen.

use std::fmt::{self, Display};

use super::{Device, Occupancy, Status};
use crate::observe::{entry, span};

impl Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grave = self.problems.iter().filter(|problem| problem.grave).count();
        match grave {
            0 => writeln!(f, "well")?,
            1 => writeln!(f, "NOT WELL: 1 problem")?,
            many => writeln!(f, "NOT WELL: {many} problems")?,
        }
        writeln!(f)?;
        for problem in &self.problems {
            entry(f, if problem.grave { "PROBLEM" } else { "note" }, &problem.says)?;
            entry(f, "", &format!("-> {}", problem.advice))?;
        }
        if !self.problems.is_empty() {
            writeln!(f)?;
        }
        entry(f, "agent", &self.agent())?;
        let services = &self.services;
        let refusing = match services.refusing {
            0 => String::new(),
            1 => "; 1 refuses connections for want of an endpoint".to_owned(),
            refusing => format!("; {refusing} refuse connections for want of an endpoint"),
        };
        entry(
            f,
            "services",
            &format!("{} Service ports, {} endpoints{refusing}", services.ports, services.endpoints),
        )?;
        entry(f, "programs", &self.programs())?;
        entry(f, "devices", &self.devices())?;
        entry(
            f,
            "sockets",
            &match self.sockets.len() {
                0 => "no program at a cgroup: processes of the node are not served".to_owned(),
                count => format!(
                    "{count} programs at the cgroup: processes of the node are served when they connect"
                ),
            },
        )?;
        let tables: Vec<String> = self.tables.iter().map(occupancy).collect();
        if !tables.is_empty() {
            entry(f, "tables", &tables.join(", "))?;
            let traffic = &self.traffic;
            let rate = |count: u64| (count as f64 / traffic.seconds.max(1e-3)).round();
            entry(
                f,
                "traffic",
                &format!(
                    "{} new connections/s, {} packets/s, {:.1} Mbit/s (in the last {:.1} s)",
                    rate(traffic.connections),
                    rate(traffic.packets),
                    rate(traffic.bytes) * 8.0 / 1e6,
                    traffic.seconds
                ),
            )?;
            entry(f, "drops", &self.drops())?;
        }
        Ok(())
    }
}

impl Status {
    fn agent(&self) -> String {
        let agent = &self.agent;
        if !agent.running {
            return match agent.counted_seconds {
                Some(seconds) => format!("does NOT run; the last one was at work {} ago", span(seconds)),
                None => "does NOT run".to_owned(),
            };
        }
        let mut text = match agent.process {
            Some(process) => format!("runs (process {process})"),
            None => "runs".to_owned(),
        };
        if let Some(health) = agent.health {
            text.push_str(&format!(", {health}"));
        }
        if let Some(seconds) = agent.last_sync_seconds {
            text.push_str(&format!(", last change in the kernel {} ago", span(seconds as u32)));
        }
        if let Some(repairs) = agent.repairs.filter(|repairs| *repairs > 0) {
            text.push_str(&format!(", put back {repairs} programs that others removed"));
        }
        text
    }

    fn programs(&self) -> String {
        let loaded = match self.programs_loaded_seconds {
            Some(seconds) => format!("loaded {} ago", span(seconds as u32)),
            None => "none".to_owned(),
        };
        match self.forwarding {
            Some(mode) => format!("{loaded}, forwarding {mode}; lb-agent {}", self.version),
            None => loaded,
        }
    }

    fn devices(&self) -> String {
        let of =
            |role: &str| self.devices.iter().filter(|device| device.role == role).collect::<Vec<&Device>>();
        let (pods, net) = (of("pod"), of("network"));
        let net: Vec<String> = net
            .iter()
            .map(|device| match device.xdp {
                Some(mode) => format!("{} (XDP {mode})", device.name),
                None => device.name.clone(),
            })
            .collect();
        let with = self.devices.iter().filter(|device| device.missing.is_empty()).count();
        let vias: std::collections::BTreeSet<&str> = self
            .devices
            .iter()
            .filter_map(|device| device.via)
            .map(|via| match via {
                crate::dataplane::Via::Tcx => "TCX",
                crate::dataplane::Via::Tc => "traffic control",
            })
            .collect();
        let net = if net.is_empty() {
            "no network device".to_owned()
        } else {
            format!("network: {}", net.join(", "))
        };
        format!(
            "{} of pods, {net}; {with} of {} have their programs ({})",
            pods.len(),
            self.devices.len(),
            vias.into_iter().collect::<Vec<_>>().join(" and ")
        )
    }

    fn drops(&self) -> String {
        let now: u64 = self.drops.iter().map(|drops| drops.now).sum();
        let total: Vec<String> =
            self.drops.iter().take(6).map(|drops| format!("{} {}", drops.reason, drops.total)).collect();
        let total = if total.is_empty() { "none".to_owned() } else { total.join(", ") };
        format!("{now} packets dropped or refused in the last {:.1} s; ever: {total}", self.traffic.seconds)
    }
}

fn occupancy(table: &Occupancy) -> String {
    format!("{} {}/{} ({}%)", table.table, table.entries, table.size, table.percent())
}
