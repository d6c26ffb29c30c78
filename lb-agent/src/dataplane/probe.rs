//! Whether this kernel and these privileges suffice: found out by trying, said in plain words.

use std::fs;
use std::path::Path;

use aya::util::KernelVersion;
use lb_common::layout::{Forwarding, Table};
use serde::Serialize;

use super::attach;
use super::cgroup::{self, SocketOptions};
use super::load::{self, Hook, LoadOptions};
use super::mapped::{Access, MappedMemory};
use super::pins::Pins;
use super::shape::Map;
use super::sizes::Sizes;
use super::sys;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// The agent works, with less.
    Limited,
    /// The agent cannot work.
    Missing,
}

/// Result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked.
    pub check: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do about it, when something has to be done.
    pub advice: Option<String>,
}

impl Finding {
    pub(crate) fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Ok, found: found.into(), advice: None }
    }

    pub(crate) fn limited(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Limited, found: found.into(), advice: Some(advice.into()) }
    }

    fn missing(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Missing, found: found.into(), advice: Some(advice.into()) }
    }
}

/// Runs every check. Attaches nothing and leaves nothing behind.
pub fn probe(pins: &Pins, object: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![kernel(), capabilities()];
    findings.extend([bpffs(pins), cgroup(), btf(), jit()]);
    findings.extend(programs(object));
    findings
}

fn kernel() -> Finding {
    const CHECK: &str = "kernel";
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match KernelVersion::current() {
        Ok(version) if version >= KernelVersion::new(5, 10, 0) => {
            Finding::ok(CHECK, format!("Linux {release}"))
        }
        Ok(_) => Finding::limited(
            CHECK,
            format!("Linux {release}"),
            "redirect into pods came with 5.10 and is tested from there on: run 5.10 or later",
        ),
        Err(error) => {
            Finding::limited(CHECK, format!("version unknown ({error})"), "expect the checks below to tell")
        }
    }
}

/// Bits of the effective capability set (`include/uapi/linux/capability.h`).
const CAPABILITIES: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_BPF", 39), ("CAP_PERFMON", 38)];
const SYS_ADMIN: u32 = 21;

fn capabilities() -> Finding {
    const CHECK: &str = "capabilities";
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let Some(effective) = effective_capabilities(&status) else {
        return Finding::limited(CHECK, "cannot be read from /proc/self/status", "mount /proc");
    };
    let has = |bit: u32| effective & (1 << bit) != 0;
    let lacks: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(name, bit)| !has(*bit) && (*name == "CAP_NET_ADMIN" || !has(SYS_ADMIN)))
        .map(|(name, _)| *name)
        .collect();
    if lacks.is_empty() {
        return Finding::ok(CHECK, "all that is needed");
    }
    Finding::missing(
        CHECK,
        format!("lacks {}", lacks.join(", ")),
        "run as root, or grant CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON (CAP_SYS_ADMIN before 5.8, and to mount bpffs)",
    )
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn bpffs(pins: &Pins) -> Finding {
    const CHECK: &str = "bpf file system";
    let root = pins.root();
    let existing = root.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    match sys::is_bpffs(existing) {
        Ok(true) => Finding::ok(CHECK, format!("mounted at or above {}", root.display())),
        Ok(false) if root.starts_with("/sys/fs/bpf") && Path::new("/sys/fs/bpf").is_dir() => {
            Finding::limited(
                CHECK,
                "not mounted at /sys/fs/bpf",
                "lb-agent run mounts it; in a container, mount the host's /sys/fs/bpf instead, or a restarted pod \
             finds nothing to adopt",
            )
        }
        Ok(false) => Finding::missing(
            CHECK,
            format!("{} is none", existing.display()),
            "mount one (mount -t bpf bpf DIR) and point --bpf-root into it",
        ),
        Err(error) => {
            Finding::missing(CHECK, format!("{}: {error}", existing.display()), "choose another --bpf-root")
        }
    }
}

fn cgroup() -> Finding {
    const CHECK: &str = "cgroup v2";
    match cgroup::find_cgroup() {
        Ok(cgroup) if cgroup.is_root() => {
            Finding::ok(CHECK, format!("mounted at {}", cgroup.path().display()))
        }
        Ok(cgroup) => Finding::limited(
            CHECK,
            format!("{} shows only a part of the hierarchy", cgroup.path().display()),
            "in a container, mount the host's /sys/fs/cgroup and name it with --cgroup, or processes of the node are \
             not served",
        ),
        Err(error) => Finding::limited(
            CHECK,
            chain(&error),
            "needed to serve processes of the node; pods are served without it (--socket-lb off)",
        ),
    }
}

fn btf() -> Finding {
    const CHECK: &str = "kernel BTF";
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        Finding::ok(CHECK, "present")
    } else {
        Finding::limited(CHECK, "absent", "not needed by the programs; bpftool shows less without it")
    }
}

fn jit() -> Finding {
    const CHECK: &str = "bpf JIT compiler";
    match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable") {
        Ok(text) if text.trim() != "0" => Finding::ok(CHECK, "enabled"),
        Ok(_) => Finding::limited(
            CHECK,
            "disabled",
            "sysctl net.core.bpf_jit_enable=1: programs run many times faster",
        ),
        Err(_) => {
            Finding::limited(CHECK, "setting not readable", "make sure that net.core.bpf_jit_enable is 1")
        }
    }
}

/// Loads the real programs, in both forwarding modes, with small maps that vanish with this process.
fn programs(object: Option<&Path>) -> Vec<Finding> {
    const LOAD: &str = "programs, forwarding stack";
    const REDIRECT: &str = "programs, forwarding redirect";
    let options = |forwarding| LoadOptions {
        object: object.map(Path::to_owned),
        sizes: Sizes { services: 16, endpoints: 16, connections: 1024, flow_cache_sets: 1, slots: None },
        forwarding,
        log: false,
        masquerade_ports: 1024..=32767,
        echo_reply: true,
        sockets: None,
    };
    let loaded = match load::load_unpinned(&options(Forwarding::Stack)) {
        Ok(loaded) => loaded,
        Err(error) => {
            return vec![Finding::missing(
                LOAD,
                chain(&error),
                "with all capabilities present, this kernel's verifier refuses: please report the whole message",
            )];
        }
    };
    let mut findings = vec![Finding::ok(LOAD, "loaded")];
    findings.push(match load::load_unpinned(&options(Forwarding::Redirect)) {
        Ok(_) => Finding::ok(REDIRECT, "loaded"),
        Err(error) => Finding::limited(REDIRECT, chain(&error), "use --forwarding stack, the default"),
    });
    findings.push(sockets(&options(Forwarding::Stack)));
    findings.push(mappable(&loaded));
    findings.push(attachable(&loaded));
    findings
}

/// Loads the programs for sockets, too, as they would be used here.
fn sockets(options: &LoadOptions) -> Finding {
    const CHECK: &str = "programs, sockets";
    let loaded = SocketOptions::of_this_node(true, 120).and_then(|sockets| {
        load::load_unpinned(&LoadOptions { sockets: Some(sockets), ..options.clone() }).map(|_| sockets)
    });
    match loaded {
        Ok(SocketOptions { errors: true, .. }) => Finding::ok(CHECK, "loaded"),
        Ok(_) => Finding::limited(
            CHECK,
            "loaded; they cannot choose the error of a call (6.1 and later)",
            "processes of the node that connect to a Service without endpoints are told EPERM, not ECONNREFUSED",
        ),
        Err(error) => Finding::limited(
            CHECK,
            chain(&error),
            "use --socket-lb off: pods are served, processes of the node are not",
        ),
    }
}

fn mappable(loaded: &aya::Ebpf) -> Finding {
    const CHECK: &str = "mappable tables";
    let sizes = Sizes { services: 16, endpoints: 16, connections: 1024, flow_cache_sets: 1, slots: None };
    let mapped = MappedMemory::new(Access::Write, |table: Table| {
        load::map_fd(loaded, table.map_name()).map(|fd| (fd, Map::Table(table).max_entries(&sizes)))
    });
    match mapped {
        Ok(_) => Finding::ok(CHECK, "mapped for writing"),
        Err(error) => {
            Finding::missing(CHECK, error.to_string(), "BPF_F_MMAPABLE came with 5.5: run a later kernel")
        }
    }
}

fn attachable(loaded: &aya::Ebpf) -> Finding {
    const CHECK: &str = "attaching";
    let supported = load::program_fd(loaded, Hook::FromPod).is_ok_and(attach::tcx_is_supported);
    if supported {
        Finding::ok(CHECK, "TCX links")
    } else {
        Finding::limited(
            CHECK,
            "no TCX (6.6 and later): traffic control filters are used instead",
            "works the same; keep other tools from deleting the clsact qdiscs of pod devices",
        )
    }
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read_from_the_status_file() {
        let status = "Name:\tx\nCapPrm:\t0000000000000001\nCapEff:\t000001ffffffffff\n";
        assert_eq!(effective_capabilities(status), Some(0x1ff_ffff_ffff));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }
}
