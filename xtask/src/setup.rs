//! `cargo xtask setup`: what tests and demo need of the machine beyond Rust.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{process, progress};

/// A Debian package, the program of it we call, and what for.
struct Package {
    name: &'static str,
    program: &'static str,
    why: &'static str,
}

const PACKAGES: &[Package] = &[
    Package { name: "iproute2", program: "ip", why: "shows and checks the lab's devices, routes and qdiscs" },
    Package { name: "bpftool", program: "bpftool", why: "dumps what the kernel made of the programs" },
    Package { name: "nftables", program: "nft", why: "lab nodes with a firewall" },
    Package { name: "iptables", program: "iptables", why: "the rules we are compared with" },
    Package { name: "iperf3", program: "iperf3", why: "bulk streams through a Service" },
    Package { name: "curl", program: "curl", why: "HTTP clients that are not ours" },
    Package { name: "dnsutils", program: "dig", why: "DNS clients that are not ours" },
    Package { name: "runc", program: "runc", why: "runs the image as a container" },
    Package { name: "procps", program: "ps", why: "finds leftovers of an earlier run" },
    Package {
        name: "tshark",
        program: "tshark",
        why: "dissects a sample of packets with other eyes than ours",
    },
    Package { name: "valgrind", program: "valgrind", why: "counts the instructions of an endpoint change" },
    Package { name: "ethtool", program: "ethtool", why: "switches offloads of the lab's devices" },
];

/// Where pinned programs and tables live.
const BPFFS: &str = "/sys/fs/bpf";

/// Capabilities the lab needs, by bit in `CapEff`.
const CAPABILITIES: &[(u32, &str)] = &[(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN"), (39, "CAP_BPF")];

/// Commands run in a network namespace of their own, each with what its failure means.
const KERNEL_PROBES: &[(&str, &str)] = &[
    ("ip link add lbt-a type veth peer name lbt-b", "no veth devices (CONFIG_VETH)"),
    ("ip link add lbt-br type bridge", "no bridges (CONFIG_BRIDGE)"),
    (
        "ip link add lbt-a type veth peer name lbt-b && tc qdisc add dev lbt-a clsact",
        "no clsact qdisc (CONFIG_NET_SCH_INGRESS)",
    ),
];

/// The list of packages for `--help`.
pub(crate) fn package_table() -> String {
    let line = |package: &Package| format!("  {:<10} {}", package.name, package.why);
    let lines: Vec<String> = PACKAGES.iter().map(line).collect();
    format!("Debian packages, installed only when their program is missing:\n{}", lines.join("\n"))
}

/// Makes the machine ready for lab tests and demo, or says what stands in the way.
pub(crate) fn ensure() -> Result<()> {
    packages()?;
    privileges()?;
    bpffs()?;
    kernel()
}

fn packages() -> Result<()> {
    let missing: Vec<&Package> =
        PACKAGES.iter().filter(|package| !process::on_path(package.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let by_hand = format!("apt-get install --no-install-recommends {}", names.join(" "));
    if !process::on_path("apt-get") {
        let programs: Vec<&str> = missing.iter().map(|package| package.program).collect();
        bail!("missing programs: {}; install them with this system's package manager", programs.join(", "));
    }
    if effective_uid()? != 0 {
        bail!("missing packages; install them as root and run the same command again: sudo {by_hand}");
    }
    for package in &missing {
        eprintln!("      {} is missing: {}", package.name, package.why);
    }
    progress::step(format!("Debian packages {}", names.join(" ")), "for the lab", || {
        // A third party's archive that cannot be reached fails the update, though the packages can be had.
        let update = process::capture(apt_get().arg("update"));
        process::capture(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(&names))
            .with_context(|| {
                let lists =
                    update.err().map(|error| format!(" (before that: {error:#})")).unwrap_or_default();
                format!("the packages could not be installed; try by hand: {by_hand}{lists}")
            })
    })?;
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    command.args(["-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=2"]);
    command
}

fn privileges() -> Result<()> {
    let status = read("/proc/self/status")?;
    let effective = status_field(&status, "CapEff:")
        .and_then(|word| u64::from_str_radix(word, 16).ok())
        .context("/proc/self/status shows no CapEff")?;
    let lacking: Vec<&str> =
        CAPABILITIES.iter().filter(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| *name).collect();
    if effective_uid()? != 0 || !lacking.is_empty() {
        bail!(
            "the lab makes network namespaces and loads BPF programs, which takes root with {}; run this as root \
             (`sudo -E env PATH=\"$PATH\" cargo xtask …`), or `cargo test` for the tests that need no privilege",
            if lacking.is_empty() { "all capabilities".to_owned() } else { lacking.join(", ") }
        );
    }
    Ok(())
}

fn bpffs() -> Result<()> {
    if is_mounted(&read("/proc/self/mounts")?, BPFFS, "bpf") {
        return Ok(());
    }
    if !Path::new(BPFFS).is_dir() {
        bail!(
            "{BPFFS} does not exist: this kernel is built without CONFIG_BPF_SYSCALL, or /sys is not mounted"
        );
    }
    progress::step(format!("bpffs at {BPFFS}"), "holds pinned programs and tables", || {
        process::capture(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]))
            .context("mount failed; in a container, give it /sys/fs/bpf of the host")
    })?;
    Ok(())
}

fn kernel() -> Result<()> {
    let mounts = read("/proc/self/mounts")?;
    if !mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2")) {
        bail!("no cgroup v2 hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup");
    }
    let mut lacking = Vec::new();
    for (script, meaning) in KERNEL_PROBES {
        let output = process::output(Command::new("unshare").args(["--net", "sh", "-c", script]))?;
        if !output.status.success() {
            lacking.push(format!("{meaning}\n{}", process::tail(&output)));
        }
    }
    if !lacking.is_empty() {
        bail!("this kernel does not do for the lab:\n  {}", lacking.join("\n  "));
    }
    Ok(())
}

fn effective_uid() -> Result<u32> {
    let status = read("/proc/self/status")?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    // Real, effective, saved, file system.
    let effective = uids.and_then(|uids| uids.split_whitespace().nth(1)).and_then(|uid| uid.parse().ok());
    effective.context("/proc/self/status shows no Uid")
}

fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Whether `/proc/self/mounts` shows a file system of that type at that place; of several the last one counts.
fn is_mounted(mounts: &str, place: &str, kind: &str) -> bool {
    let of_line = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        (fields.next()? == place).then(|| fields.next().map(|found| found == kind))?
    };
    mounts.lines().filter_map(of_line).next_back().unwrap_or(false)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_counts() {
        let mounts = "sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\n";
        assert!(is_mounted(mounts, "/sys/fs/bpf", "bpf"));
        assert!(!is_mounted(mounts, "/sys", "bpf"));
        assert!(!is_mounted("", "/sys/fs/bpf", "bpf"));
        let covered = format!("{mounts}tmpfs /sys/fs/bpf tmpfs rw 0 0\n");
        assert!(!is_mounted(&covered, "/sys/fs/bpf", "bpf"));
    }

    #[test]
    fn status_fields() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\n";
        assert_eq!(status_field(status, "CapEff:"), Some("000001ffffffffff"));
        assert_eq!(status_field(status, "CapAmb:"), None);
    }
}
