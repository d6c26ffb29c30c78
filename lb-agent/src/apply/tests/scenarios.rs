//! Scenarios in text form, next to this file; `UPDATE_EXPECT=1` writes what comes out into them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::{env, fs};

use lb_common::layout::{Class, Control, FrontendKind, Table};

use super::steps::{Step, parse};
use crate::apply::{Applier, BackendView, PolicyView, TableKey, view};
use crate::dataplane::memory::{CountedGrace, StoppingMemory, TableMemory, TableSizes, VecMemory};
use crate::plan::{PlanBatch, PlanChange};

const SIZES: TableSizes = TableSizes { frontend_buckets: 16, services: 16, slot_words: 32, backends: 32 };

type Memory = Arc<StoppingMemory<VecMemory>>;

#[test]
fn every_scenario_comes_out_as_written() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/apply/tests/scenarios");
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let now = play(&text);
        if env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&file, &now).unwrap();
        } else if now != text {
            wrong.push(format!("{}:\n{now}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "not as written (UPDATE_EXPECT=1 accepts):\n{}", wrong.join("\n"));
}

fn adopt(memory: &Memory) -> Applier<Memory> {
    Applier::adopt(memory.clone(), CountedGrace::default()).unwrap()
}

fn play(text: &str) -> String {
    let memory = Arc::new(StoppingMemory::new(VecMemory::new(SIZES), u64::MAX));
    let mut applier = adopt(&memory);
    let mut changes = BTreeMap::new();
    let mut life = None;
    let mut out = String::new();
    for (source, step) in parse(text) {
        out.push_str(&source);
        let before = memory.stores();
        match step {
            Step::Service(plan) => drop(changes.insert(plan.service.clone(), Some(plan))),
            Step::Remove(service) => drop(changes.insert(service, None)),
            Step::Apply { full } => {
                let change = |(service, plan)| PlanChange { service, plan, received: None };
                let changes = std::mem::take(&mut changes).into_iter().map(change).collect();
                memory.stop_after(life.unwrap_or(u64::MAX));
                let report = applier.apply(PlanBatch { full, changes });
                if let Some(stores) = life.take() {
                    memory.stop_after(u64::MAX);
                    applier = adopt(&memory);
                    writeln!(out, "| died after {stores} stores").unwrap();
                    continue;
                }
                writeln!(out, "| {} stores", memory.stores() - before).unwrap();
                for failure in report.failures {
                    writeln!(out, "| {} failed: {}", failure.service, failure.error).unwrap();
                }
                for conflict in applier.conflicts() {
                    let losers: Vec<String> = conflict.losers.iter().map(ToString::to_string).collect();
                    let (owner, losers) = (conflict.owner, losers.join(", "));
                    writeln!(out, "| {} goes to {owner}, not to {losers}", frontend(&conflict.frontend))
                        .unwrap();
                }
                assert_eq!(applier.needs_retry(), applier.pending().next().is_some());
            }
            Step::Way(address, way) => applier.set_way(address, way).unwrap(),
            Step::Ranges(ranges) => applier.set_service_ranges(&ranges).unwrap(),
            Step::Node(addresses) => applier.set_node_addresses(&addresses).unwrap(),
            Step::Die(stores) => life = Some(stores),
            Step::Dump => dump(&memory, &mut out),
        }
    }
    out
}

fn frontend(key: &TableKey) -> String {
    format!("{}/{}", std::net::SocketAddr::from((key.address, key.port)), key.protocol)
}

fn dump(memory: &impl TableMemory, out: &mut String) {
    let view = view(memory);
    let control = |word: Control| memory.load(Table::Control, word as u32, 0);
    writeln!(out, "| epoch {}", control(Control::Epoch)).unwrap();
    for service in &view.services {
        let name = match &service.key {
            Some(key) => format!("{key} {:?}", key.family),
            None => "(no name)".into(),
        };
        let frontends: Vec<String> =
            service.frontends.iter().map(|entry| format!("{entry}/{}", entry.protocol)).collect();
        let list = |class| {
            let class = service.class(class);
            let slots: Vec<String> = class.slots.iter().map(ToString::to_string).collect();
            format!("{} {}", class.verdict, slots.join(" ")).trim_end().to_owned()
        };
        let internal = list(Class::Internal);
        let line = format!("| {} {name}: {} -> {internal}", service.index, frontends.join(" "));
        writeln!(out, "{}", line.trim_end()).unwrap();
        if service.frontends.iter().any(|entry| entry.kind != FrontendKind::ClusterIp) {
            writeln!(out, "|     external -> {}", list(Class::External)).unwrap();
            writeln!(out, "|     inside -> {}", list(Class::Cluster)).unwrap();
        }
        policy(&service.policy, out);
        let family = service.key.as_ref().map(|key| key.family);
        let mine = view.backends.iter().filter(|b| b.service == service.index && Some(b.family) == family);
        for backend in mine {
            writeln!(out, "|     {}", describe(backend)).unwrap();
        }
    }
    for orphan in &view.orphans {
        writeln!(out, "| {} leads nowhere: {}", frontend(&orphan.key), orphan.service).unwrap();
    }
    let without = |address: &&IpAddr| !view.with_endpoints.contains(address);
    let without: Vec<IpAddr> = view.addresses.iter().filter(without).copied().collect();
    for (what, addresses) in [
        ("addresses", &view.addresses),
        ("without endpoints", &without),
        ("node addresses", &view.node_addresses),
    ] {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        if !addresses.is_empty() {
            writeln!(out, "| {what} {}", addresses.join(" ")).unwrap();
        }
    }
    for row in 0..control(Control::ServiceRanges) as u32 {
        let words: Vec<String> = (0..4)
            .map(|word| format!("{:016x}", memory.load(Table::ServiceRanges, row, word).to_be()))
            .collect();
        writeln!(out, "| range {} mask {}", words[..2].join(""), words[2..].join("")).unwrap();
    }
}

fn policy(policy: &PolicyView, out: &mut String) {
    let mut words = Vec::new();
    if policy.affinity_timeout != 0 {
        words.push(format!("affinity {}s", policy.affinity_timeout));
    }
    if policy.preserve_source {
        words.push("source kept".into());
    }
    if let Some(sources) = &policy.sources {
        words.push("sources".into());
        words.extend(sources.iter().map(ToString::to_string));
        if policy.host_allowed {
            words.push("and the node".into());
        }
    }
    if !words.is_empty() {
        writeln!(out, "|     {}", words.join(" ")).unwrap();
    }
}

fn describe(backend: &BackendView) -> String {
    let BackendView { index, address, port, serving, classes, local, neighbour, interface, mac, .. } =
        *backend;
    let mut text = format!("{index} {}", std::net::SocketAddr::from((address, port)));
    let flags = [(serving, "serving"), (local, "local"), (neighbour, "neighbour")];
    let classes = classes.into_iter().zip(["in-internal", "in-external", "in-cluster"]);
    for (flag, word) in flags.into_iter().chain(classes) {
        if flag {
            write!(text, " {word}").unwrap();
        }
    }
    if interface != 0 {
        let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        write!(text, " over {interface} to {}", mac.join(":")).unwrap();
    }
    text
}
