//! The counters of the programs, summed over all nodes.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::layout::{BackendStat, ServiceStat};

use super::Stage;

/// Reasons that tell of a fault rather than of a client's mistake.
const FAULTS: [&str; 4] = ["table_inconsistent", "rewrite_failed", "refusal_failed", "connection_table_full"];

/// Counters of a Service port or an endpoint.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    connections: u64,
    packets: u64,
    replies: u64,
    bytes: u64,
    refused: u64,
}

impl Sum {
    fn row(&self, name: &str) -> String {
        let Self { connections, packets, replies, bytes, refused } = self;
        format!("{name:<60} {connections:>6} {packets:>7} {replies:>7} {bytes:>8} {refused:>7}")
    }
}

/// A Service port on all nodes.
#[derive(Debug, Default)]
struct Port {
    sum: Sum,
    endpoints: BTreeMap<SocketAddr, Sum>,
}

pub(super) async fn tell(stage: &mut Stage) -> anyhow::Result<()> {
    let Stage { cluster, teller } = stage;
    teller.note(
        "Per-CPU counters kept by the programs, read from the pinned maps and summed over the nodes; a connection is \
         counted where its client is. An endpoint that is gone took its row with it.",
    );
    let mut ports: BTreeMap<String, Port> = BTreeMap::new();
    let mut drops: BTreeMap<&'static str, u64> = BTreeMap::new();
    for agent in cluster.agents() {
        let tables = cluster.tables(agent.node())?;
        for (row, counters) in tables.ports() {
            let Some(key) = &row.key else { continue };
            let frontend = row.frontends.first().map(|it| SocketAddr::new(it.address, it.port).to_string());
            let port = ports.entry(format!("{key} {}", frontend.unwrap_or_default())).or_default();
            port.sum.connections += counters.get(ServiceStat::Connections);
            port.sum.packets += counters.get(ServiceStat::Packets);
            port.sum.replies += counters.get(ServiceStat::ReplyPackets);
            port.sum.bytes += counters.get(ServiceStat::Bytes) + counters.get(ServiceStat::ReplyBytes);
            port.sum.refused += counters.get(ServiceStat::Refused);
            for (backend, counters) in tables.endpoints(row) {
                let sum = port.endpoints.entry(SocketAddr::new(backend.address, backend.port)).or_default();
                sum.connections += counters.get(BackendStat::Connections);
                sum.packets += counters.get(BackendStat::Packets);
                sum.replies += counters.get(BackendStat::ReplyPackets);
                sum.bytes += counters.get(BackendStat::Bytes) + counters.get(BackendStat::ReplyBytes);
            }
        }
        for (reason, count) in tables.drops() {
            *drops.entry(reason).or_default() += count;
        }
    }
    let pods = cluster.runtime().pods();
    teller.raw(&format!(
        "{:<60} {:>6} {:>7} {:>7} {:>8} {:>7}",
        "SERVICE", "CONNS", "PACKETS", "REPLIES", "BYTES", "REFUSED"
    ));
    for (name, port) in ports.iter().filter(|(_, port)| port.sum.packets + port.sum.refused > 0) {
        teller.raw(&port.sum.row(name));
        for (endpoint, sum) in &port.endpoints {
            let pod = pods.iter().find(|pod| pod.addresses().contains(&endpoint.ip()));
            let pod = pod.map(|pod| pod.name()).unwrap_or_default();
            teller.raw(&sum.row(&format!("  {endpoint} {pod}")));
        }
    }
    let counted: Vec<String> = drops
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    let faults: u64 = FAULTS.iter().map(|reason| drops.get(reason).copied().unwrap_or_default()).sum();
    teller.check(faults == 0, format!("packets refused or dropped, by reason: {}", counted.join(", ")));
    let auth = ports.iter().find(|(name, _)| name.starts_with("default/auth-service "));
    let once = auth.is_some_and(|(_, port)| {
        let at_endpoints: u64 = port.endpoints.values().map(|sum| sum.connections).sum();
        (port.sum.connections, at_endpoints) == (1, 1) && port.sum.replies > 0
    });
    teller.check(
        once,
        "default/auth-service was called once: one connection, at the Service and at its endpoint",
    );
    Ok(())
}
