//! Service ports with their counters.

use lb_common::layout::ServiceStat;
use serde::Serialize;

use super::{Column, ServiceFilter, TableText, name_of, protocol_name};
use crate::apply::{ServiceView, TablesView};
use crate::dataplane::{Counters, Result, ServiceCounters};

/// A Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceRow {
    /// `namespace/name` or `namespace/name:port`; `-` for a row without a name.
    pub service: String,
    /// Transport protocol.
    pub protocol: String,
    /// Addresses and ports that clients connect to.
    pub frontends: Vec<String>,
    /// What happens to a new connection: `random`, `reject` or `drop`.
    pub verdict: &'static str,
    /// Endpoints a new connection chooses from.
    pub endpoints: usize,
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
        .map(|service| Ok(row(service, &counters.service(service.index)?)))
        .collect::<Result<Vec<ServiceRow>>>()?;
    rows.sort_by(|a, b| {
        (&a.service, &a.protocol, &a.frontends).cmp(&(&b.service, &b.protocol, &b.frontends))
    });
    Ok(rows)
}

fn row(service: &ServiceView, counters: &ServiceCounters) -> ServiceRow {
    let frontend =
        |key: &crate::apply::TableKey| std::net::SocketAddr::new(key.address, key.port).to_string();
    ServiceRow {
        service: name_of(service.key.as_ref()),
        protocol: service.key.as_ref().map_or_else(|| "-".into(), |key| protocol_name(key.protocol.number())),
        frontends: service.frontends.iter().map(frontend).collect(),
        verdict: service.verdict,
        endpoints: service.slots.len(),
        connections: counters.get(ServiceStat::Connections),
        packets: counters.get(ServiceStat::Packets),
        bytes: counters.get(ServiceStat::Bytes),
        reply_packets: counters.get(ServiceStat::ReplyPackets),
        reply_bytes: counters.get(ServiceStat::ReplyBytes),
        refused: counters.get(ServiceStat::Refused),
        dropped: counters.get(ServiceStat::Dropped),
        reselected: counters.get(ServiceStat::Reselected),
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
            Column::number("CONNS"),
            Column::number("PACKETS"),
            Column::number("BYTES"),
            Column::number("REPLIES"),
            Column::number("REPLY-BYTES"),
            Column::number("REFUSED"),
            Column::number("DROPPED"),
        ]);
        for row in rows {
            let frontends = if row.frontends.is_empty() { "-".to_owned() } else { row.frontends.join(",") };
            table.row([
                row.service.clone(),
                row.protocol.clone(),
                frontends,
                row.verdict.to_owned(),
                row.endpoints.to_string(),
                row.connections.to_string(),
                row.packets.to_string(),
                row.bytes.to_string(),
                row.reply_packets.to_string(),
                row.reply_bytes.to_string(),
                row.refused.to_string(),
                row.dropped.to_string(),
            ]);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::TableKey;
    use crate::model::{Family, ObjectName, Protocol};
    use crate::plan::ServicePortKey;

    #[test]
    fn a_row_says_what_the_tables_and_counters_say() {
        let service = ServiceView {
            index: 1,
            key: Some(ServicePortKey {
                service: ObjectName::new("default", "web"),
                port_name: "".into(),
                protocol: Protocol::Tcp,
                family: Family::V6,
            }),
            frontends: vec![TableKey::service("fd00:96::1".parse().unwrap(), 80, 6)],
            verdict: "random",
            base: 0,
            slots: vec![1, 2],
        };
        let mut counters = ServiceCounters::default();
        counters.0[ServiceStat::Connections as usize] = 7;
        counters.0[ServiceStat::Refused as usize] = 3;
        let row = row(&service, &counters);
        assert_eq!((row.endpoints, row.connections, row.refused), (2, 7, 3));
        let text = ServiceRow::table(&[row]).render(false);
        let line: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(line[..6], ["default/web", "TCP", "[fd00:96::1]:80", "random", "2", "7"]);
    }
}
