//! The parts of a bundle.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Bundle, Collected};
use crate::apply::view;
use crate::dataplane::mapped::Access;
use crate::dataplane::{self, Attachments, Connections, Counters, Map, Maps, Pins, xdp_links};
use crate::net::{self, Depth, Follower};
use crate::observe::{backend_rows, connection_rows, drop_rows, service_rows};
use crate::status;

/// The longest file that is taken: logs may be long, and their end is what matters.
const LONGEST: u64 = 16 * 1024 * 1024;

/// Files of the kernel that tell how this node's network is, and nothing else.
const KERNEL: [(&str, &str, &str); 12] = [
    ("kernel/version", "/proc/version", "kernel"),
    ("kernel/os-release", "/etc/os-release", "distribution (of the container, where lb-agent runs in one)"),
    ("kernel/uptime", "/proc/uptime", "how long the machine runs"),
    ("kernel/meminfo", "/proc/meminfo", "memory"),
    ("kernel/net-dev", "/proc/net/dev", "packets, errors and drops by device"),
    ("kernel/net-snmp", "/proc/net/snmp", "counters of the IPv4 stack"),
    ("kernel/net-snmp6", "/proc/net/snmp6", "counters of the IPv6 stack"),
    ("kernel/net-netstat", "/proc/net/netstat", "more counters of the stack"),
    ("kernel/softnet", "/proc/net/softnet_stat", "packets by CPU, and whether they were too many"),
    ("kernel/conntrack-count", "/proc/sys/net/netfilter/nf_conntrack_count", "connections netfilter tracks"),
    ("kernel/conntrack-max", "/proc/sys/net/netfilter/nf_conntrack_max", "connections netfilter may track"),
    ("kernel/fib", "/proc/net/fib_trie", "IPv4 routes"),
];

/// Settings of the kernel that matter here.
const SYSCTLS: [&str; 12] = [
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/ip_local_port_range",
    "net/core/bpf_jit_enable",
    "net/core/bpf_jit_harden",
    "net/core/netdev_max_backlog",
    "net/bridge/bridge-nf-call-iptables",
    "kernel/unprivileged_bpf_disabled",
    "kernel/osrelease",
];

/// Everything.
pub(super) async fn all(bundle: &Bundle) -> Collected {
    let mut collected = Collected::default();
    let status = status::status(&bundle.look).await;
    collected.add(
        "status.txt",
        "what `lb-agent status` says",
        status
            .as_ref()
            .map(|status| status.to_string().into_bytes())
            .map_err(|error| anyhow::anyhow!("{error:#}")),
    );
    let process = status.as_ref().ok().and_then(|status| status.agent.process);
    collected.add_json("status.json", "the same for programs", status);
    of_tables(bundle, &mut collected);
    of_network(bundle, &mut collected).await;
    of_agent(bundle, process, &mut collected);
    let pins = &bundle.look.pins;
    let mut findings = dataplane::probe(pins, bundle.object.as_deref());
    findings.extend(net::check_sysctls());
    collected.add_json("check.json", "what `lb-agent check` finds", Ok(findings));
    for (name, path, what) in KERNEL {
        // Not every kernel has all of them.
        if Path::new(path).exists() {
            collected.add(name, what, read(Path::new(path)));
        }
    }
    let settings: serde_json::Map<String, Value> = SYSCTLS
        .iter()
        .filter_map(|name| {
            let value = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
            Some((name.replace('/', "."), json!(value.trim())))
        })
        .collect();
    collected.add_json("kernel/sysctls.json", "settings of the kernel that matter here", Ok(settings));
    collected.add("kernel/mounts", "file systems of bpf(2) and cgroups", mounts());
    for path in &bundle.add {
        let name = path.file_name().map_or_else(|| "file".into(), |name| name.to_string_lossy());
        collected.add(&format!("added/{name}"), "added by --add", read(path));
    }
    collected
}

/// What the pinned maps say.
fn of_tables(bundle: &Bundle, collected: &mut Collected) {
    let pins = &bundle.look.pins;
    collected.add_json("pins.json", "what is pinned below --bpf-root", pinned(pins));
    let maps = match Maps::open(pins) {
        Ok(maps) => maps,
        Err(error) => {
            collected.add("services.json", "", Err(error.into()));
            return;
        }
    };
    let sizes: Vec<Value> =
        Map::all().map(|map| json!({"map": map.name(), "max_entries": maps.max_entries(map)})).collect();
    collected.add_json("maps.json", "sizes of the maps", Ok(sizes));
    let memory = match maps.tables(Access::Read) {
        Ok(memory) => memory,
        Err(error) => {
            collected.add("services.json", "", Err(error.into()));
            return;
        }
    };
    let view = view(&memory);
    let counters = Counters::new(&maps);
    let rows = |rows: fn(&crate::apply::TablesView, &Counters<'_>) -> anyhow::Result<Value>| {
        let counters = counters.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
        rows(&view, counters)
    };
    collected.add_json(
        "services.json",
        "Services in the tables, with their counters",
        rows(|view, counters| Ok(serde_json::to_value(service_rows(view, counters, None)?)?)),
    );
    collected.add_json(
        "backends.json",
        "endpoints in the tables, with their counters",
        rows(|view, counters| Ok(serde_json::to_value(backend_rows(view, counters, None)?)?)),
    );
    collected.add_json(
        "drops.json",
        "packets dropped or refused, by reason",
        rows(|_, counters| Ok(serde_json::to_value(drop_rows(&counters.reasons()?, true))?)),
    );
    let addresses = json!({
        "cluster_ips": view.addresses, "with_endpoints": view.with_endpoints, "node_port_addresses": view.node_addresses,
        "orphans": view.orphans.iter().map(|orphan| format!("{orphan:?}")).collect::<Vec<_>>(),
    });
    collected.add_json("addresses.json", "addresses that the tables know", Ok(addresses));
    let connections = Connections::new(&maps).list().map_err(anyhow::Error::from).map(|connections| {
        let mut rows = connection_rows(&view, &connections, None);
        let count = rows.len();
        rows.sort_by_key(|row| row.idle_seconds);
        rows.truncate(bundle.connections);
        json!({"count": count, "most_recent": rows})
    });
    collected.add_json("connections.json", "connections, those of the last packets", connections);
}

fn pinned(pins: &Pins) -> anyhow::Result<Vec<String>> {
    fn walk(directory: &Path, found: &mut Vec<String>) -> anyhow::Result<()> {
        let entries = fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                walk(&entry.path(), found)?;
            } else {
                found.push(entry.path().display().to_string());
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(pins.root(), &mut found)?;
    found.sort();
    Ok(found)
}

#[derive(Serialize)]
struct Attached {
    place: String,
    program: &'static str,
    id: u32,
    tag: String,
    loaded_seconds: u64,
}

/// Devices, routes, and what is attached.
async fn of_network(bundle: &Bundle, collected: &mut Collected) {
    let pins = &bundle.look.pins;
    let follower = match Follower::connect(Depth::Ways) {
        Ok(follower) => follower,
        Err(error) => {
            collected.add("devices.json", "", Err(error.into()));
            return;
        }
    };
    let mirror = match follower.dump().await {
        Ok(mirror) => mirror,
        Err(error) => {
            collected.add("devices.json", "", Err(error.into()));
            return;
        }
    };
    let devices: Vec<Value> = mirror
        .links()
        .map(|link| {
            let addresses = mirror.addresses_of(link.index).iter().map(|address| address.address.to_string());
            json!({
                "index": link.index, "name": link.name, "kind": format!("{:?}", link.kind), "up": link.up,
                "ethernet": link.ethernet, "master": link.master, "peer_elsewhere": link.peer_elsewhere,
                "mtu": link.mtu, "addresses": addresses.collect::<Vec<_>>(),
            })
        })
        .collect();
    collected.add_json("devices.json", "network devices with their addresses", Ok(devices));
    collected.add(
        "mirror.txt",
        "devices, routes, neighbours, bridge tables and rules, as lb-agent understands them",
        Ok(format!("{mirror:#?}\n").into_bytes()),
    );
    let found = Attachments::find(pins, follower.handle(), mirror.links().map(|link| link.index)).await;
    let attached = found.map_err(anyhow::Error::from).map(|found| {
        let of_devices = found.devices.iter().map(|((interface, hook), (via, program))| {
            (format!("interface {interface} through {via:?}"), hook.program(), program)
        });
        let of_sockets =
            found.sockets.iter().map(|(hook, program)| ("cgroup".to_owned(), hook.program(), program));
        let rows: Vec<Attached> = of_devices
            .chain(of_sockets)
            .map(|(place, program, info)| Attached {
                place,
                program,
                id: info.id(),
                tag: info.tag(),
                loaded_seconds: info.loaded_seconds(),
            })
            .collect();
        json!({"programs": rows, "dead_links": found.dead_links})
    });
    collected.add_json("attached.json", "programs that are attached, with their tags", attached);
    let xdp = xdp_links(pins).map_err(anyhow::Error::from).map(|links| {
        let link = |link: &dataplane::XdpLink| {
            json!({"interface": link.interface, "place": link.place.name(), "program": link.program})
        };
        links.iter().map(link).collect::<Vec<_>>()
    });
    collected.add_json("xdp.json", "devices with the XDP program", xdp);
}

/// What a running agent tells, and what the kernel tells of its process.
fn of_agent(bundle: &Bundle, process: Option<u32>, collected: &mut Collected) {
    let look = &bundle.look;
    let pages = [
        ("agent/healthz.json", "its health", look.healthz.0, "/healthz"),
        ("agent/metrics.txt", "its metrics", look.metrics.0, "/metrics"),
        ("agent/configz.json", "its flags and configuration", look.metrics.0, "/configz"),
    ];
    for (name, what, address, path) in pages {
        let told = address.context("its server is off").and_then(|address| {
            let (_, body) =
                status::get(address, path).with_context(|| format!("asking {address} for {path}"))?;
            Ok(body.into_bytes())
        });
        collected.add(name, what, told);
    }
    let Some(process) = process else { return };
    // Not its environment, which may hold what is nobody's business.
    for (file, what) in
        [("status", "its memory and threads"), ("cmdline", "its command line"), ("limits", "its limits")]
    {
        let content = read(Path::new(&format!("/proc/{process}/{file}")));
        let content =
            content.map(|bytes| bytes.into_iter().map(|byte| if byte == 0 { b'\n' } else { byte }).collect());
        collected.add(&format!("agent/{file}"), what, content);
    }
}

fn mounts() -> anyhow::Result<Vec<u8>> {
    let text = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let matters = |line: &&str| {
        let kind = line.split(' ').nth(2).unwrap_or_default();
        ["bpf", "cgroup", "cgroup2", "sysfs"].contains(&kind)
    };
    Ok(text.lines().filter(matters).flat_map(|line| [line, "\n"]).collect::<String>().into_bytes())
}

/// A file, or the end of a long one.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    use std::io::{Seek, SeekFrom};
    let mut file = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    if length > LONGEST {
        file.seek(SeekFrom::End(-(LONGEST as i64)))?;
    }
    let mut content = Vec::new();
    file.take(LONGEST).read_to_end(&mut content).with_context(|| format!("reading {}", path.display()))?;
    Ok(content)
}
