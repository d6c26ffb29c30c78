//! Endpoints with their counters.

use std::net::SocketAddr;

use lb_common::layout::BackendStat;
use serde::Serialize;

use super::{Column, ServiceFilter, TableText, key_of, name_of};
use crate::apply::{BackendView, TablesView};
use crate::dataplane::{BackendCounters, Counters, Result};
use crate::model::Family;

/// An endpoint of a Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendRow {
    /// The Service port it belongs to.
    pub service: String,
    /// Address and port.
    pub endpoint: SocketAddr,
    /// `active`: chosen for new connections; `serving`: keeps its flows; `gone`: neither.
    pub state: &'static str,
    /// How packets get there: `local`, `neighbour` or `stack`.
    pub way: &'static str,
    /// Device that leads there, 0 when the host's stack decides.
    pub interface: u32,
    /// Connections opened.
    pub connections: u64,
    /// Packets to the endpoint.
    pub packets: u64,
    /// Bytes to the endpoint.
    pub bytes: u64,
    /// Packets from the endpoint.
    pub reply_packets: u64,
    /// Bytes from the endpoint.
    pub reply_bytes: u64,
}

/// Every endpoint of the Services that the filter selects, sorted by Service and address.
///
/// # Errors
/// When counters cannot be read.
pub fn backend_rows(
    view: &TablesView,
    counters: &Counters<'_>,
    filter: Option<&ServiceFilter>,
) -> Result<Vec<BackendRow>> {
    let selected = view
        .backends
        .iter()
        .filter(|backend| filter.is_none_or(|filter| filter.matches(key_of(view, backend.service))));
    let mut rows = selected
        .map(|backend| {
            let counters = counters.backend(backend.family == Family::V6, backend.index)?;
            Ok(row(view, backend, &counters))
        })
        .collect::<Result<Vec<BackendRow>>>()?;
    rows.sort_by(|a, b| (&a.service, a.endpoint).cmp(&(&b.service, b.endpoint)));
    Ok(rows)
}

fn row(view: &TablesView, backend: &BackendView, counters: &BackendCounters) -> BackendRow {
    let service = view.services.binary_search_by_key(&backend.service, |service| service.index);
    let chosen = service.is_ok_and(|at| view.services[at].slots.contains(&backend.index));
    BackendRow {
        service: name_of(key_of(view, backend.service)),
        endpoint: SocketAddr::new(backend.address, backend.port),
        state: match (chosen, backend.serving) {
            (true, _) => "active",
            (false, true) => "serving",
            (false, false) => "gone",
        },
        way: match (backend.interface, backend.neighbour) {
            (0, _) => "stack",
            (_, true) => "neighbour",
            (_, false) => "local",
        },
        interface: backend.interface,
        connections: counters.get(BackendStat::Connections),
        packets: counters.get(BackendStat::Packets),
        bytes: counters.get(BackendStat::Bytes),
        reply_packets: counters.get(BackendStat::ReplyPackets),
        reply_bytes: counters.get(BackendStat::ReplyBytes),
    }
}

impl BackendRow {
    /// Rows as a table.
    pub fn table(rows: &[Self]) -> TableText {
        let mut table = TableText::new(&[
            Column::text("SERVICE"),
            Column::text("ENDPOINT"),
            Column::text("STATE"),
            Column::text("WAY"),
            Column::number("IFINDEX"),
            Column::number("CONNS"),
            Column::number("PACKETS"),
            Column::number("BYTES"),
            Column::number("REPLIES"),
            Column::number("REPLY-BYTES"),
        ]);
        for row in rows {
            table.row([
                row.service.clone(),
                row.endpoint.to_string(),
                row.state.to_owned(),
                row.way.to_owned(),
                if row.interface == 0 { "-".to_owned() } else { row.interface.to_string() },
                row.connections.to_string(),
                row.packets.to_string(),
                row.bytes.to_string(),
                row.reply_packets.to_string(),
                row.reply_bytes.to_string(),
            ]);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::ServiceView;

    #[test]
    fn state_and_way_tell_what_a_new_connection_would_meet() {
        let service = ServiceView {
            index: 4,
            key: None,
            frontends: Vec::new(),
            verdict: "random",
            base: 0,
            slots: vec![1],
        };
        let view = TablesView { services: vec![service], ..TablesView::default() };
        let backend = |index, serving, interface, neighbour| BackendView {
            family: Family::V4,
            index,
            service: 4,
            address: "10.0.0.1".parse().unwrap(),
            port: 80,
            serving,
            local: false,
            neighbour,
            interface,
            mac: [0; 6],
        };
        let told = |backend: BackendView| {
            let row = row(&view, &backend, &BackendCounters::default());
            (row.state, row.way)
        };
        assert_eq!(told(backend(1, true, 7, false)), ("active", "local"));
        assert_eq!(told(backend(2, true, 2, true)), ("serving", "neighbour"));
        assert_eq!(told(backend(3, false, 0, false)), ("gone", "stack"));
    }
}
