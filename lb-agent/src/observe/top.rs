//! What is busy now: rates between two looks at the counters.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::time::Duration;

use lb_common::layout::{BackendStat, ServiceStat};
use lb_common::reason::Reason;
use serde::Serialize;

use super::{Column, ServiceFilter, TableText, key_of, name_of};
use crate::apply::{BackendView, ServiceView, TablesView};
use crate::dataplane::{Counters, Result};
use crate::model::Family;

/// The counters at one moment.
#[derive(Clone, Debug, Default)]
pub struct Look {
    services: Vec<Counted>,
    endpoints: Vec<Counted>,
    reasons: Vec<(Reason, u64)>,
}

/// A Service port or an endpoint, and what was counted for it so far.
#[derive(Clone, Debug)]
struct Counted {
    /// Tells it from the others while its row is in use: family and row of the table.
    row: (Family, u32),
    subject: Subject,
    counts: Counts,
}

/// Whose rates they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Subject {
    service: String,
    protocol: String,
    /// The first frontend of a Service port, or the address of an endpoint.
    address: String,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    connections: u64,
    packets: u64,
    bytes: u64,
    reply_bytes: u64,
    errors: u64,
    handshakes: u64,
    handshake_micros: u64,
    /// Not counted up: so many are there.
    entries: u64,
}

/// What rows are sorted by, the largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TopOrder {
    /// New connections a second.
    #[default]
    Connections,
    /// Packets a second, both directions.
    Packets,
    /// Bytes a second, both directions.
    Bytes,
    /// Time from a SYN to its answer.
    Latency,
    /// Packets refused and dropped a second.
    Errors,
}

impl TopOrder {
    /// The next one, in the order in which they are listed.
    pub const fn next(self) -> Self {
        match self {
            Self::Connections => Self::Packets,
            Self::Packets => Self::Bytes,
            Self::Bytes => Self::Latency,
            Self::Latency => Self::Errors,
            Self::Errors => Self::Connections,
        }
    }

    /// What the rows are sorted by, in words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connections => "new connections",
            Self::Packets => "packets",
            Self::Bytes => "bytes",
            Self::Latency => "handshake latency",
            Self::Errors => "errors",
        }
    }
}

/// A Service port or an endpoint, and what happened there a second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TopRow {
    #[serde(flatten)]
    subject: Subject,
    /// Connections opened, a second.
    pub connections_per_second: f64,
    /// Packets in both directions, a second.
    pub packets_per_second: f64,
    /// Bytes from clients, a second.
    pub bytes_per_second: f64,
    /// Bytes to clients, a second.
    pub reply_bytes_per_second: f64,
    /// Mean time from a SYN to its answer in this interval, `null` when no connection was answered.
    pub handshake_seconds: Option<f64>,
    /// Packets refused or dropped, a second; endpoints have none of their own.
    pub errors_per_second: f64,
    /// Entries in the connection tables: a flow has two, or four where it is masqueraded.
    pub entries: u64,
}

/// What happened in an interval.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Top {
    /// Its length.
    pub seconds: f64,
    /// Service ports, busiest first.
    pub services: Vec<TopRow>,
    /// Endpoints, busiest first.
    pub endpoints: Vec<TopRow>,
    /// Packets dropped and refused a second, by reason; only reasons that occurred.
    pub reasons: Vec<ReasonRate>,
}

/// A reason and how often.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ReasonRate {
    /// Name of the reason.
    pub reason: &'static str,
    /// Packets a second.
    pub per_second: f64,
}

impl Look {
    /// Reads the counters of the Services that the filter selects, and those of all drops.
    ///
    /// # Errors
    /// When counters cannot be read.
    pub fn new(view: &TablesView, counters: &Counters<'_>, filter: Option<&ServiceFilter>) -> Result<Self> {
        let meant = |index| filter.is_none_or(|filter| filter.matches(key_of(view, index)));
        let services = view.services.iter().filter(|service| meant(service.index));
        let endpoints = view.backends.iter().filter(|backend| meant(backend.service));
        Ok(Self {
            services: services.map(|service| of_service(service, counters)).collect::<Result<_>>()?,
            endpoints: endpoints
                .map(|backend| of_endpoint(view, backend, counters))
                .collect::<Result<_>>()?,
            reasons: counters.reasons()?,
        })
    }

    /// What happened since an earlier look. What was not there then, or has begun to count anew, counts from 0.
    pub fn since(&self, before: &Self, elapsed: Duration, order: TopOrder) -> Top {
        let seconds = elapsed.as_secs_f64().max(1e-3);
        let reasons = self.reasons.iter().zip(&before.reasons).filter_map(|((reason, now), (_, then))| {
            let per_second = now.saturating_sub(*then) as f64 / seconds;
            (per_second > 0.0).then_some(ReasonRate { reason: reason.name(), per_second })
        });
        let mut reasons: Vec<ReasonRate> = reasons.collect();
        reasons.sort_by(|a, b| b.per_second.total_cmp(&a.per_second));
        Top {
            seconds,
            services: rows(&self.services, &before.services, seconds, order),
            endpoints: rows(&self.endpoints, &before.endpoints, seconds, order),
            reasons,
        }
    }
}

fn of_service(service: &ServiceView, counters: &Counters<'_>) -> Result<Counted> {
    let row = counters.service(service.index)?;
    let count = |stat| row.get(stat);
    Ok(Counted {
        row: (Family::V4, service.index),
        subject: Subject {
            service: name_of(service.key.as_ref()),
            protocol: service.key.as_ref().map_or_else(|| "-".to_owned(), |key| key.protocol.to_string()),
            address: service.frontends.first().map_or_else(|| "-".to_owned(), ToString::to_string),
        },
        counts: Counts {
            connections: count(ServiceStat::Connections),
            packets: count(ServiceStat::Packets) + count(ServiceStat::ReplyPackets),
            bytes: count(ServiceStat::Bytes),
            reply_bytes: count(ServiceStat::ReplyBytes),
            errors: count(ServiceStat::Refused) + count(ServiceStat::Dropped),
            handshakes: count(ServiceStat::Handshakes),
            handshake_micros: count(ServiceStat::HandshakeMicros),
            entries: counters.entries(service.index)?,
        },
    })
}

fn of_endpoint(view: &TablesView, backend: &BackendView, counters: &Counters<'_>) -> Result<Counted> {
    let row = counters.backend(backend.family == Family::V6, backend.index)?;
    let count = |stat| row.get(stat);
    let key = key_of(view, backend.service);
    Ok(Counted {
        row: (backend.family, backend.index),
        subject: Subject {
            service: name_of(key),
            protocol: key.map_or_else(|| "-".to_owned(), |key| key.protocol.to_string()),
            address: std::net::SocketAddr::new(backend.address, backend.port).to_string(),
        },
        counts: Counts {
            connections: count(BackendStat::Connections),
            packets: count(BackendStat::Packets) + count(BackendStat::ReplyPackets),
            bytes: count(BackendStat::Bytes),
            reply_bytes: count(BackendStat::ReplyBytes),
            handshakes: count(BackendStat::Handshakes),
            handshake_micros: count(BackendStat::HandshakeMicros),
            ..Counts::default()
        },
    })
}

fn rows(now: &[Counted], before: &[Counted], seconds: f64, order: TopOrder) -> Vec<TopRow> {
    let then: HashMap<_, &Counted> = before.iter().map(|counted| (counted.row, counted)).collect();
    let mut rows: Vec<TopRow> = now
        .iter()
        .map(|counted| {
            // A row that somebody else had before counts from 0, as does one that was set back.
            let then = then.get(&counted.row).filter(|then| then.subject.service == counted.subject.service);
            let then = then.map_or_else(Counts::default, |then| then.counts);
            row(counted, &then, seconds)
        })
        .collect();
    rows.sort_by(|a, b| {
        let busier = key(b, order).total_cmp(&key(a, order));
        let other = key(b, TopOrder::Packets).total_cmp(&key(a, TopOrder::Packets));
        let by_name = (&a.subject.service, &a.subject.address).cmp(&(&b.subject.service, &b.subject.address));
        busier.then(other).then_with(|| by_name).then(Ordering::Equal)
    });
    rows
}

fn row(counted: &Counted, then: &Counts, seconds: f64) -> TopRow {
    let now = &counted.counts;
    let since = |count: fn(&Counts) -> u64| {
        let (now, then) = (count(now), count(then));
        if now < then { now } else { now - then }
    };
    let rate = |count| since(count) as f64 / seconds;
    let handshakes = since(|counts| counts.handshakes);
    TopRow {
        subject: counted.subject.clone(),
        connections_per_second: rate(|counts| counts.connections),
        packets_per_second: rate(|counts| counts.packets),
        bytes_per_second: rate(|counts| counts.bytes),
        reply_bytes_per_second: rate(|counts| counts.reply_bytes),
        handshake_seconds: (handshakes > 0)
            .then(|| since(|counts| counts.handshake_micros) as f64 / 1e6 / handshakes as f64),
        errors_per_second: rate(|counts| counts.errors),
        entries: now.entries,
    }
}

fn key(row: &TopRow, order: TopOrder) -> f64 {
    match order {
        TopOrder::Connections => row.connections_per_second,
        TopOrder::Packets => row.packets_per_second,
        TopOrder::Bytes => row.bytes_per_second + row.reply_bytes_per_second,
        TopOrder::Latency => row.handshake_seconds.unwrap_or(0.0),
        TopOrder::Errors => row.errors_per_second,
    }
}

impl Top {
    /// The busiest `most` rows as a table: endpoints or Service ports.
    pub fn table(&self, endpoints: bool, most: usize) -> TableText {
        let mut table = TableText::new(&[
            Column::text("SERVICE"),
            Column::text("PROTO"),
            Column::text(if endpoints { "ENDPOINT" } else { "FRONTEND" }),
            Column::number("CONNS/s"),
            Column::number("PACKETS/s"),
            Column::number("IN/s"),
            Column::number("OUT/s"),
            Column::number("HANDSHAKE"),
            Column::number("ERRORS/s"),
            Column::number("ENTRIES"),
        ]);
        let rows = if endpoints { &self.endpoints } else { &self.services };
        for row in rows.iter().take(most) {
            table.row([
                row.subject.service.clone(),
                row.subject.protocol.clone(),
                row.subject.address.clone(),
                number(row.connections_per_second),
                number(row.packets_per_second),
                bytes(row.bytes_per_second),
                bytes(row.reply_bytes_per_second),
                row.handshake_seconds.map_or_else(|| "-".to_owned(), duration),
                number(row.errors_per_second),
                if endpoints { "-".to_owned() } else { row.entries.to_string() },
            ]);
        }
        table
    }

    /// All Service ports together, and why packets were refused, in a line each.
    pub fn summary(&self) -> String {
        let sum = |of: fn(&TopRow) -> f64| self.services.iter().map(of).sum::<f64>();
        let mut text = format!(
            "{} connections/s   {} packets/s   in {}/s   out {}/s",
            number(sum(|row| row.connections_per_second)),
            number(sum(|row| row.packets_per_second)),
            bytes(sum(|row| row.bytes_per_second)),
            bytes(sum(|row| row.reply_bytes_per_second)),
        );
        let reasons: Vec<String> = self
            .reasons
            .iter()
            .map(|rate| format!("{} {}/s", rate.reason, number(rate.per_second)))
            .collect();
        text.push_str("\ndropped and refused: ");
        text.push_str(&if reasons.is_empty() { "nothing".to_owned() } else { reasons.join(", ") });
        text.push('\n');
        text
    }
}

/// A rate with three digits that count.
fn number(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        small if small < 10.0 => format!("{small:.1}"),
        medium if medium < 100_000.0 => format!("{medium:.0}"),
        large if large < 1e8 => format!("{:.0}k", large / 1e3),
        huge => format!("{:.0}M", huge / 1e6),
    }
}

/// Bytes in units of 1024 (IEC 80000-13).
fn bytes(value: f64) -> String {
    let mut value = value;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{value:.0} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        short if short < 1e-3 => format!("{:.0}us", short * 1e6),
        medium if medium < 1.0 => format!("{:.1}ms", medium * 1e3),
        long => format!("{long:.1}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(row: u32, service: &str, connections: u64, handshakes: (u64, u64)) -> Counted {
        let subject =
            Subject { service: service.to_owned(), protocol: "TCP".to_owned(), address: "a:1".to_owned() };
        let (handshakes, handshake_micros) = handshakes;
        let counts = Counts { connections, handshakes, handshake_micros, ..Counts::default() };
        Counted { row: (Family::V4, row), subject, counts }
    }

    fn look(services: Vec<Counted>, dropped: u64) -> Look {
        Look { services, endpoints: Vec::new(), reasons: vec![(Reason::NoEndpoint, dropped)] }
    }

    #[test]
    fn rates_are_of_the_interval_and_the_busiest_comes_first() {
        let before = look(vec![counted(1, "a", 100, (0, 0)), counted(2, "b", 0, (10, 1_000))], 5);
        let now = look(vec![counted(1, "a", 110, (0, 0)), counted(2, "b", 40, (30, 5_000))], 9);
        let top = now.since(&before, Duration::from_secs(2), TopOrder::Connections);
        let rates: Vec<_> =
            top.services.iter().map(|row| (&*row.subject.service, row.connections_per_second)).collect();
        assert_eq!(rates, [("b", 20.0), ("a", 5.0)]);
        assert_eq!(top.services[0].handshake_seconds, Some(0.0002));
        assert_eq!(top.services[1].handshake_seconds, None);
        assert_eq!(top.reasons, [ReasonRate { reason: "no_endpoint", per_second: 2.0 }]);
    }

    #[test]
    fn a_row_with_another_owner_or_set_back_counts_from_nothing() {
        let before = look(vec![counted(1, "a", 100, (0, 0)), counted(2, "b", 50, (0, 0))], 0);
        let now = look(vec![counted(1, "c", 120, (0, 0)), counted(2, "b", 3, (0, 0))], 0);
        let top = now.since(&before, Duration::from_secs(1), TopOrder::Connections);
        let rates: Vec<_> =
            top.services.iter().map(|row| (&*row.subject.service, row.connections_per_second)).collect();
        assert_eq!(rates, [("c", 120.0), ("b", 3.0)]);
        assert!(top.reasons.is_empty() && top.summary().ends_with("dropped and refused: nothing\n"));
    }

    #[test]
    fn every_order_comes_round() {
        let mut order = TopOrder::default();
        let mut names = Vec::new();
        for _ in 0..5 {
            names.push(order.name());
            order = order.next();
        }
        assert_eq!(order, TopOrder::default());
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), 5);
    }

    #[test]
    fn numbers_are_short() {
        let cases = [(0.0, "0"), (0.5, "0.5"), (99.4, "99"), (123_456.0, "123k"), (2.5e8, "250M")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!(
            [bytes(12.0), bytes(2048.0), bytes(3.5 * 1024.0 * 1024.0)],
            ["12 B", "2.0 KiB", "3.5 MiB"]
        );
        assert_eq!([duration(0.00002), duration(0.0021), duration(1.04)], ["20us", "2.1ms", "1.0s"]);
    }
}
