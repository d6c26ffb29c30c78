//! Connections.

use std::net::SocketAddr;

use serde::Serialize;

use super::{Column, ServiceFilter, TableText, key_of, name_of, protocol_name, span};
use crate::apply::TablesView;
use crate::dataplane::Connection;

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConnectionRow {
    /// Transport protocol.
    pub protocol: String,
    /// State, as the kernel's own connection tracking names it.
    pub state: &'static str,
    /// Who opened it.
    pub client: SocketAddr,
    /// What the client connected to.
    pub frontend: SocketAddr,
    /// Where it went.
    pub endpoint: SocketAddr,
    /// What the endpoint takes for the client, when that is an address of the node.
    pub masqueraded_as: Option<SocketAddr>,
    /// The Service port.
    pub service: String,
    /// Seconds since its first packet.
    pub age_seconds: u32,
    /// Seconds since its last packet; exact to a few seconds.
    pub idle_seconds: u32,
    /// Client and endpoint are the same pod.
    pub hairpin: bool,
}

/// The connections to Services that the filter selects, sorted by client.
pub fn connection_rows(
    view: &TablesView,
    connections: &[Connection],
    filter: Option<&ServiceFilter>,
) -> Vec<ConnectionRow> {
    let selected = connections
        .iter()
        .filter(|connection| filter.is_none_or(|filter| filter.matches(key_of(view, connection.service))));
    let mut rows: Vec<ConnectionRow> = selected
        .map(|connection| ConnectionRow {
            protocol: protocol_name(connection.protocol),
            state: connection.state.name(),
            client: connection.client,
            frontend: connection.frontend,
            endpoint: connection.endpoint,
            masqueraded_as: connection.masqueraded_as,
            service: name_of(key_of(view, connection.service)),
            age_seconds: connection.age,
            idle_seconds: connection.idle,
            hairpin: connection.hairpin,
        })
        .collect();
    rows.sort_by(|a, b| (a.client, a.frontend, &a.protocol).cmp(&(b.client, b.frontend, &b.protocol)));
    rows
}

impl ConnectionRow {
    /// Rows as a table.
    pub fn table(rows: &[Self]) -> TableText {
        let mut table = TableText::new(&[
            Column::text("PROTO"),
            Column::text("STATE"),
            Column::text("CLIENT"),
            Column::text("FRONTEND"),
            Column::text("ENDPOINT"),
            Column::text("MASQUERADED AS"),
            Column::text("SERVICE"),
            Column::number("AGE"),
            Column::number("IDLE"),
        ]);
        for row in rows {
            table.row([
                row.protocol.clone(),
                row.state.to_owned(),
                row.client.to_string(),
                row.frontend.to_string(),
                row.endpoint.to_string(),
                row.masqueraded_as.map_or_else(|| "-".to_owned(), |source| source.to_string()),
                row.service.clone(),
                span(row.age_seconds),
                span(row.idle_seconds),
            ]);
        }
        table
    }
}
