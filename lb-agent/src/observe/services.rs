//! Service ports with their counters.

use lb_common::layout::{Class, FrontendKind, ServiceStat};
use serde::Serialize;

use super::{Column, ServiceFilter, TableText, name_of, protocol_name};
use crate::apply::{FrontendEntry, ServiceView, TablesView};
use crate::dataplane::{Counters, Result, ServiceCounters};
use crate::model::Cidr;
use crate::plan::kind_name;

/// A Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceRow {
    /// `namespace/name` or `namespace/name:port`; `-` for a row without a name.
    pub service: String,
    /// Transport protocol.
    pub protocol: String,
    /// Addresses and ports that clients connect to, cluster IPs first.
    pub frontends: Vec<FrontendRow>,
    /// What happens to a new connection at a cluster IP: `random`, `reject` or `drop`.
    pub verdict: &'static str,
    /// Endpoints a new connection at a cluster IP chooses from.
    pub endpoints: usize,
    /// What clients outside the node meet at the other frontends; `null` when there are none.
    pub external: Option<ClassRow>,
    /// What pods and processes of the node meet there; `null` when there are none.
    pub inside: Option<ClassRow>,
    /// Seconds for which a client stays with its endpoint, `null` for no affinity.
    pub affinity_timeout: Option<u32>,
    /// Clients outside keep their source address at the other frontends.
    pub preserve_source: bool,
    /// The only sources that load balancer addresses are for; `null` = everybody, `[]` = nobody.
    pub source_ranges: Option<Vec<Cidr>>,
    /// Connections opened.
    pub connections: u64,
    /// Packets from clients.
    pub packets: u64,
    /// Bytes from clients.
    pub bytes: u64,
    /// Packets to clients.
    pub reply_packets: u64,
    /// Bytes to clients.
    pub reply_bytes: u64,
    /// Packets refused with a port unreachable.
    pub refused: u64,
    /// Packets dropped.
    pub dropped: u64,
    /// Flows that chose another endpoint.
    pub reselected: u64,
    /// Flows that made room for newer ones of the Service, because it had much of a connection table that was nearly full.
    pub recycled: u64,
    /// Entries of the connection tables: a flow has two, or four where it is masqueraded.
    pub entries: u64,
}

/// An address and port of a Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FrontendRow {
    /// `clusterIP`, `externalIP`, `loadBalancer` or `nodePort`.
    pub kind: &'static str,
    /// The address; `null` for node ports, which every node port address has.
    pub address: Option<std::net::IpAddr>,
    /// The port.
    pub port: u16,
    #[serde(skip)]
    text: String,
}

impl From<&FrontendEntry> for FrontendRow {
    fn from(entry: &FrontendEntry) -> Self {
        let address = (entry.kind != FrontendKind::NodePort).then_some(entry.address);
        Self { kind: kind_name(entry.kind), address, port: entry.port, text: entry.to_string() }
    }
}

/// What a traffic class meets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassRow {
    /// What happens to a new connection: `random`, `reject` or `drop`.
    pub verdict: &'static str,
    /// Endpoints a new connection chooses from.
    pub endpoints: usize,
}

/// Every Service port that the filter selects, sorted by name.
///
/// # Errors
/// When counters cannot be read.
pub fn service_rows(
    view: &TablesView,
    counters: &Counters<'_>,
    filter: Option<&ServiceFilter>,
) -> Result<Vec<ServiceRow>> {
    let selected = view
        .services
        .iter()
        .filter(|service| filter.is_none_or(|filter| filter.matches(service.key.as_ref())));
    let mut rows = selected
        .map(|service| Ok(row(service, &counters.service(service.index)?, counters.entries(service.index)?)))
        .collect::<Result<Vec<ServiceRow>>>()?;
    let order = |row: &ServiceRow| {
        let first = row.frontends.first().map(|frontend| (frontend.address, frontend.port));
        (row.service.clone(), row.protocol.clone(), first)
    };
    rows.sort_by_cached_key(order);
    Ok(rows)
}

fn row(service: &ServiceView, counters: &ServiceCounters, entries: u64) -> ServiceRow {
    let class = |class: Class| {
        let class = service.class(class);
        ClassRow { verdict: class.verdict, endpoints: class.slots.len() }
    };
    let ClassRow { verdict, endpoints } = class(Class::Internal);
    let is_external = service.frontends.iter().any(|frontend| frontend.kind != FrontendKind::ClusterIp);
    let external = |wanted| is_external.then(|| class(wanted));
    ServiceRow {
        service: name_of(service.key.as_ref()),
        protocol: service.key.as_ref().map_or_else(|| "-".into(), |key| protocol_name(key.protocol.number())),
        frontends: service.frontends.iter().map(FrontendRow::from).collect(),
        verdict,
        endpoints,
        external: external(Class::External),
        inside: external(Class::Cluster),
        affinity_timeout: Some(service.policy.affinity_timeout).filter(|timeout| *timeout != 0),
        preserve_source: service.policy.preserve_source,
        source_ranges: service.policy.sources.clone(),
        connections: counters.get(ServiceStat::Connections),
        packets: counters.get(ServiceStat::Packets),
        bytes: counters.get(ServiceStat::Bytes),
        reply_packets: counters.get(ServiceStat::ReplyPackets),
        reply_bytes: counters.get(ServiceStat::ReplyBytes),
        refused: counters.get(ServiceStat::Refused),
        dropped: counters.get(ServiceStat::Dropped),
        reselected: counters.get(ServiceStat::Reselected),
        recycled: counters.get(ServiceStat::Recycled),
        entries,
    }
}

impl ServiceRow {
    /// Rows as a table.
    pub fn table(rows: &[Self]) -> TableText {
        let mut table = TableText::new(&[
            Column::text("SERVICE"),
            Column::text("PROTO"),
            Column::text("FRONTEND"),
            Column::text("VERDICT"),
            Column::number("ENDPOINTS"),
            Column::number("AFFINITY"),
            Column::text("SOURCES"),
            Column::number("CONNS"),
            Column::number("PACKETS"),
            Column::number("BYTES"),
            Column::number("REPLIES"),
            Column::number("REPLY-BYTES"),
            Column::number("REFUSED"),
            Column::number("DROPPED"),
            Column::number("RECYCLED"),
            Column::number("ENTRIES"),
        ]);
        for row in rows {
            let frontends: Vec<&str> = row.frontends.iter().map(|frontend| frontend.text.as_str()).collect();
            table.row([
                row.service.clone(),
                row.protocol.clone(),
                if frontends.is_empty() { "-".to_owned() } else { frontends.join(",") },
                row.verdicts(),
                row.endpoints.to_string(),
                row.affinity_timeout.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds}s")),
                row.sources(),
                row.connections.to_string(),
                row.packets.to_string(),
                row.bytes.to_string(),
                row.reply_packets.to_string(),
                row.reply_bytes.to_string(),
                row.refused.to_string(),
                row.dropped.to_string(),
                row.recycled.to_string(),
                row.entries.to_string(),
            ]);
        }
        table
    }

    /// The verdict at cluster IPs, and those of other clients and frontends where they differ, with their endpoints.
    fn verdicts(&self) -> String {
        let mut text = self.verdict.to_owned();
        for (name, class) in [("external", &self.external), ("inside", &self.inside)] {
            match class {
                Some(class) if (class.verdict, class.endpoints) != (self.verdict, self.endpoints) => {
                    text.push_str(&format!(",{name}={}({})", class.verdict, class.endpoints));
                }
                _ => {}
            }
        }
        text
    }

    fn sources(&self) -> String {
        match &self.source_ranges {
            None => "-".to_owned(),
            Some(ranges) if ranges.is_empty() => "nobody".to_owned(),
            Some(ranges) => ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::{ClassView, PolicyView};
    use crate::model::{Family, ObjectName, Protocol};
    use crate::plan::ServicePortKey;

    fn view() -> ServiceView {
        let class = |slots: &[u32]| ClassView {
            verdict: "random",
            base: 0,
            slots: slots.to_vec(),
            weights: vec![1; slots.len()],
        };
        let address = "fd00:96::1".parse().unwrap();
        ServiceView {
            index: 1,
            key: Some(ServicePortKey {
                service: ObjectName::new("default", "web"),
                port_name: "".into(),
                protocol: Protocol::Tcp,
                family: Family::V6,
            }),
            frontends: vec![FrontendEntry { kind: FrontendKind::ClusterIp, address, port: 80, protocol: 6 }],
            classes: [class(&[1, 2]), class(&[1, 2]), class(&[1, 2])],
            policy: PolicyView::default(),
        }
    }

    fn cells(view: &ServiceView) -> Vec<String> {
        let mut counters = ServiceCounters::default();
        counters.0[ServiceStat::Connections as usize] = 7;
        let row = row(view, &counters, 14);
        let text = ServiceRow::table(&[row]).render(false);
        text.lines().nth(1).unwrap().split_whitespace().take(8).map(str::to_owned).collect()
    }

    #[test]
    fn a_row_says_what_the_tables_and_counters_say() {
        let expected = ["default/web", "TCP", "[fd00:96::1]:80", "random", "2", "-", "-", "7"];
        assert_eq!(cells(&view()), expected);
        let row = serde_json::to_value(row(&view(), &ServiceCounters::default(), 14)).unwrap();
        assert_eq!(row["entries"], 14);
        assert_eq!(
            row["frontends"],
            serde_json::json!([{"kind": "clusterIP", "address": "fd00:96::1", "port": 80}])
        );
        assert!(
            row["external"].is_null() && row["affinity_timeout"].is_null() && row["source_ranges"].is_null()
        );
    }

    #[test]
    fn classes_are_told_where_they_differ_and_policies_where_there_are_any() {
        let mut view = view();
        let external = |kind, address: &str, port| FrontendEntry {
            kind,
            address: address.parse().unwrap(),
            port,
            protocol: 6,
        };
        view.frontends.push(external(FrontendKind::LoadBalancer, "2001:db8::5", 80));
        view.frontends.push(external(FrontendKind::NodePort, "::", 30080));
        let all = "[fd00:96::1]:80,loadBalancer=[2001:db8::5]:80,nodePort=*:30080";
        assert_eq!(cells(&view)[2..4], [all, "random"]);
        view.classes[1] = ClassView { verdict: "drop", base: 0, slots: vec![], weights: vec![] };
        view.classes[2].slots.push(3);
        let policy = &mut view.policy;
        (policy.affinity_timeout, policy.preserve_source) = (60, true);
        policy.sources = Some(vec![Cidr::new("2001:db8::".parse().unwrap(), 32).unwrap()]);
        let expected = ["random,external=drop(0),inside=random(3)", "2", "60s", "2001:db8::/32"];
        assert_eq!(cells(&view)[3..7], expected);
        let row = serde_json::to_value(row(&view, &ServiceCounters::default(), 0)).unwrap();
        assert_eq!(row["external"], serde_json::json!({"verdict": "drop", "endpoints": 0}));
        assert_eq!(
            row["frontends"][2],
            serde_json::json!({"kind": "nodePort", "address": null, "port": 30080})
        );
        assert_eq!(row["source_ranges"], serde_json::json!(["2001:db8::/32"]));
        view.policy.sources = Some(Vec::new());
        assert_eq!(cells(&view)[6], "nobody");
    }
}
