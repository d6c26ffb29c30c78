//! Endpoints with their counters.

use std::net::SocketAddr;

use lb_common::layout::{BackendStat, Class};
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
    /// Who chooses it for new connections: `internal` (at cluster IPs), `external` (clients outside the node at other
    /// frontends), `inside` (pods and processes of the node there).
    pub classes: Vec<&'static str>,
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
    let chosen_by = |class: &Class| {
        service.is_ok_and(|at| view.services[at].class(*class).slots.contains(&backend.index))
    };
    let classes: Vec<_> = Class::ALL.into_iter().filter(chosen_by).map(class_name).collect();
    BackendRow {
        service: name_of(key_of(view, backend.service)),
        endpoint: SocketAddr::new(backend.address, backend.port),
        state: match (!classes.is_empty(), backend.serving) {
            (true, _) => "active",
            (false, true) => "serving",
            (false, false) => "gone",
        },
        classes,
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

pub(crate) const fn class_name(class: Class) -> &'static str {
    match class {
        Class::Internal => "internal",
        Class::External => "external",
        Class::Cluster => "inside",
    }
}

impl BackendRow {
    /// Rows as a table.
    pub fn table(rows: &[Self]) -> TableText {
        let mut table = TableText::new(&[
            Column::text("SERVICE"),
            Column::text("ENDPOINT"),
            Column::text("STATE"),
            Column::text("CHOSEN-BY"),
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
                if row.classes.is_empty() { "-".to_owned() } else { row.classes.join(",") },
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
    use crate::apply::{ClassView, PolicyView, ServiceView};

    #[test]
    fn state_and_way_tell_what_a_new_connection_would_meet() {
        let service = ServiceView {
            index: 4,
            key: None,
            frontends: Vec::new(),
            classes: [vec![1], vec![], vec![1, 5]].map(|slots| ClassView {
                verdict: "random",
                base: 0,
                weights: vec![1; slots.len()],
                slots,
            }),
            policy: PolicyView::default(),
        };
        let view = TablesView { services: vec![service], ..TablesView::default() };
        let backend = |index, serving, interface, neighbour| BackendView {
            family: Family::V4,
            index,
            service: 4,
            address: "10.0.0.1".parse().unwrap(),
            port: 80,
            serving,
            classes: [false; 3],
            local: false,
            neighbour,
            interface,
            mac: [0; 6],
        };
        let told = |backend: BackendView| {
            let row = row(&view, &backend, &BackendCounters::default());
            (row.state, row.way, row.classes.join(","))
        };
        assert_eq!(told(backend(1, true, 7, false)), ("active", "local", "internal,inside".into()));
        assert_eq!(told(backend(2, true, 2, true)), ("serving", "neighbour", String::new()));
        assert_eq!(told(backend(3, false, 0, false)), ("gone", "stack", String::new()));
        assert_eq!(told(backend(5, true, 0, false)).2, "inside");
    }
}
