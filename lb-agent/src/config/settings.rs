//! From fields to flags.

use std::net::IpAddr;
use std::time::Duration;

use super::document::{Fields, Given};
use super::duration::seconds;
use super::fields::{Meaning, find};

/// A flag whose default a field replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The flag's argument id: its name with underscores.
    pub flag: &'static str,
    /// Its value, in the flag's own notation.
    pub value: String,
    /// The field that says so.
    pub field: &'static str,
}

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyFile {
    /// What it sets.
    pub settings: Vec<Setting>,
    /// Fields that are set and mean nothing here, with what they are about.
    pub without_meaning: Vec<String>,
    /// What is otherwise than the file asks for, in words.
    pub notes: Vec<String>,
}

/// Shortest timeout of UDP flows: the flow cache reports every few seconds.
const LEAST_UDP_TIMEOUT: u64 = 10;
/// kube-proxy's defaults of `conntrack.maxPerCore` and `conntrack.min`, where only the other one is set.
const MAX_PER_CORE: i32 = 32 * 1024;
const MIN: i32 = 128 * 1024;
/// Entries of the connection table for each connection.
const ENTRIES: u64 = 2;
/// The sizes that the table may have ([`crate::dataplane::Sizes`]).
const LEAST_ENTRIES: u64 = 1024;
const MOST_ENTRIES: u64 = 1 << 22;

/// What known fields set.
pub(super) fn settings(fields: &Fields) -> Result<ProxyFile, String> {
    let mut file = ProxyFile::default();
    let mut reader = Reader { fields, file: &mut file };
    reader.source()?;
    let mode = reader.mode()?;
    reader.addresses()?;
    reader.log()?;
    reader.node_ports(mode);
    reader.pods()?;
    reader.connections();
    reader.health(mode);
    reader.copy("oomScoreAdj", "oom_score_adj");
    for path in fields.keys() {
        if let Some(Meaning::None(about)) = find(path).map(|field| field.meaning) {
            file.without_meaning.push(format!("{path} ({about})"));
        }
    }
    if ["iptables.masqueradeAll", "nftables.masqueradeAll"].iter().any(|path| fields.contains_key(path)) {
        file.notes.push("masqueradeAll is not done: pods keep their addresses at cluster IPs".to_owned());
    }
    Ok(file)
}

struct Reader<'f> {
    fields: &'f Fields,
    file: &'f mut ProxyFile,
}

impl Reader<'_> {
    fn text(&self, path: &str) -> Option<&str> {
        match self.fields.get(path) {
            Some(Given::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn int(&self, path: &str) -> Option<i32> {
        match self.fields.get(path) {
            Some(Given::Int(number)) => Some(*number),
            _ => None,
        }
    }

    fn duration(&self, path: &str) -> Option<Duration> {
        match self.fields.get(path) {
            Some(Given::Duration(duration)) => Some(*duration),
            _ => None,
        }
    }

    fn set(&mut self, field: &'static str, flag: &'static str, value: impl ToString) {
        self.file.settings.push(Setting { flag, value: value.to_string(), field });
    }

    /// A field whose value is the flag's.
    fn copy(&mut self, field: &'static str, flag: &'static str) {
        match self.fields.get(field) {
            Some(Given::Text(text)) => self.set(field, flag, text),
            Some(Given::Int(number)) => self.set(field, flag, number),
            Some(Given::Bool(is)) => self.set(field, flag, is),
            Some(Given::Texts(texts)) => self.set(field, flag, texts.join(",")),
            Some(Given::Duration(_) | Given::Other) | None => {}
        }
    }

    fn source(&mut self) -> Result<(), String> {
        self.copy("clientConnection.kubeconfig", "kubeconfig");
        if let Some(name) = self.text("hostnameOverride") {
            let name = name.trim().to_lowercase();
            if name.is_empty() {
                return Err("hostnameOverride is blank; expected the name of a node".to_owned());
            }
            self.set("hostnameOverride", "node_name", name);
        }
        Ok(())
    }

    /// The section of the mode that is configured.
    fn mode(&self) -> Result<&'static str, String> {
        match self.text("mode") {
            // `ebpf` is what `/configz` of this proxy says.
            None | Some("iptables" | "ebpf") => Ok("iptables"),
            Some("ipvs") => Ok("ipvs"),
            Some("nftables") => Ok("nftables"),
            Some(other) => Err(format!("mode is {other:?}; expected iptables, ipvs or nftables")),
        }
    }

    fn addresses(&mut self) -> Result<(), String> {
        let bind: Option<IpAddr> = match self.text("bindAddress") {
            Some(text) => {
                Some(text.parse().map_err(|_| format!("bindAddress is {text:?}; expected an IP address"))?)
            }
            None => None,
        };
        match bind {
            Some(address) if address.is_loopback() || address.is_multicast() => {
                self.file.notes.push(format!(
                    "bindAddress {address} is no address that others reach a node by: not used"
                ));
            }
            Some(address) if !address.is_unspecified() => self.set("bindAddress", "node_ip", address),
            _ => {}
        }
        self.copy("healthzBindAddress", "healthz_bind_address");
        self.copy("metricsBindAddress", "metrics_bind_address");
        if self.text("metricsBindAddress").is_none() && bind.is_some_and(|bind| bind.is_ipv6()) {
            self.set("bindAddress", "metrics_bind_address", "[::1]");
        }
        self.copy("bindAddressHardFail", "bind_address_hard_fail");
        Ok(())
    }

    fn log(&mut self) -> Result<(), String> {
        match self.text("logging.format") {
            None => {}
            Some("text" | "json") => self.copy("logging.format", "log_format"),
            Some(other) => return Err(format!("logging.format is {other:?}; expected text or json")),
        }
        // kube-proxy tells what it does for single objects from level 4 or 5 on.
        let level = match self.int("logging.verbosity") {
            None => return Ok(()),
            Some(..4) => "info",
            Some(4..6) => "debug",
            Some(6..) => "trace",
        };
        self.set("logging.verbosity", "filter", level);
        Ok(())
    }

    fn node_ports(&mut self, mode: &str) {
        self.copy("nodePortAddresses", "node_port_addresses");
        if mode == "nftables" && !self.fields.contains_key("nodePortAddresses") {
            self.set("mode", "node_port_addresses", "primary");
        }
    }

    fn pods(&mut self) -> Result<(), String> {
        let wanted = |field: &str| format!("detectLocalMode needs {field}");
        match self.text("detectLocalMode") {
            None | Some("ClusterCIDR" | "NodeCIDR") => {}
            Some("BridgeInterface") => {
                let field = "detectLocal.bridgeInterface";
                self.text(field).ok_or_else(|| wanted(field))?;
                self.copy(field, "pod_bridges");
            }
            Some("InterfaceNamePrefix") => {
                let field = "detectLocal.interfaceNamePrefix";
                let prefix = format!("{}*", self.text(field).ok_or_else(|| wanted(field))?);
                self.set(field, "pod_devices", prefix);
            }
            Some(other) => {
                return Err(format!(
                    "detectLocalMode is {other:?}; expected ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix"
                ));
            }
        }
        Ok(())
    }

    fn connections(&mut self) {
        self.timeout("conntrack.tcpEstablishedTimeout", "tcp_established_timeout", 1);
        self.timeout("conntrack.tcpCloseWaitTimeout", "tcp_close_wait_timeout", 1);
        self.timeout("conntrack.udpTimeout", "udp_timeout", LEAST_UDP_TIMEOUT);
        self.timeout("conntrack.udpStreamTimeout", "udp_stream_timeout", LEAST_UDP_TIMEOUT);
        let (per_core, min) = (self.int("conntrack.maxPerCore"), self.int("conntrack.min"));
        // 0 leaves the limit as it is, whatever `min` says.
        if (per_core, min) == (None, None) || per_core.is_some_and(|number| number <= 0) {
            return;
        }
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
        let by_cpus = u64::from(per_core.unwrap_or(MAX_PER_CORE).unsigned_abs()) * cpus;
        let connections = by_cpus.max(u64::from(min.unwrap_or(MIN).max(0).unsigned_abs()));
        let field = if per_core.is_some() { "conntrack.maxPerCore" } else { "conntrack.min" };
        self.set(field, "max_connections", (connections * ENTRIES).clamp(LEAST_ENTRIES, MOST_ENTRIES));
    }

    fn timeout(&mut self, field: &'static str, flag: &'static str, least: u64) {
        let Some(duration) = self.duration(field) else { return };
        let wanted = seconds(duration);
        let given = wanted.clamp(least, u64::from(u32::MAX));
        if given != wanted {
            self.file.notes.push(format!("{field} is {wanted} s; {given} s are taken"));
        }
        self.set(field, flag, given);
    }

    /// Twice the period between syncs may pass until an update counts as late.
    fn health(&mut self, mode: &str) {
        let field = match mode {
            "ipvs" => "ipvs.syncPeriod",
            "nftables" => "nftables.syncPeriod",
            _ => "iptables.syncPeriod",
        };
        if let Some(period) = self.duration(field) {
            self.set(field, "health_timeout", seconds(period.saturating_mul(2)));
        }
    }
}
