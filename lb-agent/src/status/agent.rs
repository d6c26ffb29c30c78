//! The agent: whether it runs, and what it says of itself.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::{Look, http};
use crate::app::Instance;
use crate::net::DeviceSelection;

/// What is known of the agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Agent {
    /// One runs, with this bpf root and in this network namespace.
    pub running: bool,
    /// Its process id, where `/proc` tells.
    pub process: Option<u32>,
    /// What it says of its health: `healthy`, `unhealthy`; `null` when it does not answer.
    pub health: Option<&'static str>,
    /// Why it does not answer.
    pub silence: Option<String>,
    /// Services whose last change it could not apply.
    pub late_services: Option<u64>,
    /// Seconds since the kernel last had all that was planned.
    pub last_sync_seconds: Option<f64>,
    /// Seconds since it last went over the connection tables, by its note in the tables; `null` when it never has.
    pub counted_seconds: Option<u32>,
    /// Programs and links that others removed and it put back.
    pub repairs: Option<u64>,
    /// The devices that it was told to serve, where it says so.
    #[serde(skip)]
    pub(super) selection: Option<DeviceSelection>,
}

impl Agent {
    /// Looks for it, and asks it.
    pub(super) fn look(look: &Look) -> Self {
        let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let inode = listening(&sockets, look.pins.root());
        let mut agent = Self { running: inode.is_some(), ..Self::default() };
        let Some(inode) = inode else { return agent };
        agent.process = process_with(&inode);
        agent.ask(look.healthz.0, look.metrics.0);
        agent
    }

    fn ask(&mut self, healthz: Option<SocketAddr>, metrics: Option<SocketAddr>) {
        match healthz.map(|address| (address, http::get(address, "/healthz"))) {
            Some((_, Ok((_, body)))) => {
                let body: Value = serde_json::from_str(&body).unwrap_or_default();
                self.health =
                    body["healthy"].as_bool().map(|healthy| if healthy { "healthy" } else { "unhealthy" });
                self.late_services = body["lateServices"].as_u64();
            }
            Some((address, Err(error))) => self.silence = Some(format!("no answer at {address}: {error}")),
            None => self.silence = Some("its health server is off".to_owned()),
        }
        let Some(metrics) = metrics else { return };
        if let Ok((200, body)) = http::get(metrics, "/metrics") {
            let last =
                metric(&body, "kubeproxy_sync_proxy_rules_last_timestamp_seconds").filter(|last| *last > 0.0);
            self.last_sync_seconds =
                last.map(|last| (jiff::Timestamp::now().as_millisecond() as f64 / 1e3 - last).max(0.0));
            self.repairs = sum(&body, "lb_program_repairs_total");
        }
        if let Ok((200, body)) = http::get(metrics, "/configz") {
            self.selection = serde_json::from_str(&body).ok().and_then(|body| selection(&body));
        }
    }
}

/// The inode of the socket by which an agent holds its bpf root, in the kernel's list of Unix sockets.
fn listening(sockets: &str, root: &Path) -> Option<String> {
    let name = format!("@{}", String::from_utf8_lossy(&Instance::socket_name(root)));
    let line = sockets.lines().find(|line| line.rsplit(' ').next() == Some(&name))?;
    line.split_ascii_whitespace().nth(6).map(str::to_owned)
}

/// The process that has a socket open.
fn process_with(inode: &str) -> Option<u32> {
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let entry = entry.ok()?;
        entry.file_name().to_str()?.parse::<u32>().ok()
    });
    processes.into_iter().find(|process| {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
        descriptors.flatten().any(|descriptor| {
            fs::read_link(descriptor.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str())
        })
    })
}

/// The first sample of a metric.
fn metric(text: &str, name: &str) -> Option<f64> {
    samples(text, name).next()
}

/// The sum over all samples of a metric; `None` when there is none.
fn sum(text: &str, name: &str) -> Option<u64> {
    samples(text, name).map(|value| value as u64).reduce(|a, b| a + b)
}

fn samples<'t>(text: &'t str, name: &'t str) -> impl Iterator<Item = f64> + 't {
    text.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next()?.parse().ok()).flatten()
    })
}

/// What `/configz` says of devices.
fn selection(configuration: &Value) -> Option<DeviceSelection> {
    let flag = |name: &str| configuration["lb-agent"]["flags"][name]["value"].as_str();
    Some(DeviceSelection {
        devices: flag("pod-devices")?.parse().ok()?,
        bridges: flag("pod-bridges")?.parse().ok()?,
        net: flag("net-devices")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_known_by_the_socket_that_it_holds_its_root_with() {
        let sockets = "Num       RefCount Protocol Flags    Type St Inode Path\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 4711 @lb-agent:/sys/fs/bpf/lb-agent\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 4712 /run/x\n";
        assert_eq!(listening(sockets, Path::new("/sys/fs/bpf/lb-agent")).as_deref(), Some("4711"));
        assert_eq!(listening(sockets, Path::new("/sys/fs/bpf/lb-agent2")), None);
        assert_eq!(listening(sockets, Path::new("/sys/fs/bpf/lb")), None);
    }

    #[test]
    fn metrics_are_read_by_their_whole_name() {
        let text = "# TYPE a gauge\na_b 7\na{x=\"1\"} 1.5\na{x=\"2\"} 2\n";
        assert_eq!((metric(text, "a"), sum(text, "a"), sum(text, "c")), (Some(1.5), Some(3), None));
    }
}
