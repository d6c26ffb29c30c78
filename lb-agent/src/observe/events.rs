//! What the programs tell somebody who watches, in words.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use lb_common::address::Address;
use lb_common::conntrack::State;
use lb_common::layout::{Event, EventKind};
use lb_common::reason::Reason;
use serde::Serialize;

use super::{key_of, name_of, protocol_name};
use crate::apply::TablesView;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventRow {
    /// When.
    pub time: Timestamp,
    /// `opened`, `answered`, `closed`, `refused` or `dropped`.
    pub event: &'static str,
    /// Transport protocol.
    pub protocol: String,
    /// Who sent the packet, or opened the connection; port 0 when the packet showed none.
    pub client: SocketAddr,
    /// Where it was addressed to.
    pub frontend: SocketAddr,
    /// Where it went; `null` when it went nowhere.
    pub endpoint: Option<SocketAddr>,
    /// The Service port; `null` when the packet was for none.
    pub service: Option<String>,
    /// `answered`: microseconds from the first SYN to its answer, to 16 microseconds.
    pub micros: Option<u32>,
    /// `closed`: the state, as the kernel's own connection tracking names it.
    pub state: Option<&'static str>,
    /// `refused` and `dropped`: why.
    pub reason: Option<&'static str>,
    /// `refused` and `dropped`: what that means.
    #[serde(skip)]
    meaning: Option<&'static str>,
    /// Index of the device the packet was met at.
    pub interface: u32,
}

impl EventRow {
    /// A record that was read; `booted` is the wall clock's time at 0 of the monotonic one. `None` for a kind that nobody
    /// knows.
    pub fn new(event: &Event, view: &TablesView, booted: Timestamp) -> Option<Self> {
        let kind = EventKind::from_number(event.kind)?;
        let lost = matches!(kind, EventKind::Refused | EventKind::Dropped);
        let reason = Reason::ALL.into_iter().find(|reason| lost && *reason as u8 == event.reason);
        let at = |address: lb_common::address::Ip6, port: lb_common::byteorder::Be16| {
            SocketAddr::new(unmapped(address.to_ip()), port.host())
        };
        let endpoint = at(event.endpoint, event.endpoint_port);
        let key = key_of(view, event.service);
        Some(Self {
            time: booted + jiff::SignedDuration::from_nanos(event.nanos as i64),
            event: kind.name(),
            protocol: protocol_name(event.protocol),
            client: at(event.client, event.client_port),
            frontend: at(event.frontend, event.frontend_port),
            endpoint: (!endpoint.ip().is_unspecified()).then_some(endpoint),
            service: key.map(|key| name_of(Some(key))),
            micros: (kind == EventKind::Answered).then_some(event.micros),
            state: State::from_number(event.state).filter(|_| kind == EventKind::Closed).map(State::name),
            reason: reason.map(Reason::name),
            meaning: reason.map(Reason::meaning),
            interface: event.interface,
        })
    }

    /// As a line for people.
    pub fn line(&self) -> String {
        let time = self.time.to_zoned(jiff::tz::TimeZone::system()).strftime("%H:%M:%S%.3f").to_string();
        let mut line = format!(
            "{time}  {:8}  {:4}  {} -> {}",
            self.event,
            self.protocol,
            shown(self.client),
            shown(self.frontend)
        );
        if let Some(service) = &self.service {
            line.push_str(&format!("  {service}"));
        }
        if let Some(endpoint) = self.endpoint {
            line.push_str(&format!("  endpoint {endpoint}"));
        }
        if let Some(micros) = self.micros {
            line.push_str(&format!("  after {}", crate::observe::top::duration(f64::from(micros) / 1e6)));
        }
        if let Some(state) = self.state {
            line.push_str(&format!("  {state}"));
        }
        if let (Some(reason), Some(meaning)) = (self.reason, self.meaning) {
            line.push_str(&format!("  {reason}: {meaning}"));
        }
        line
    }

    /// True when the address is one of those the row names.
    pub fn has(&self, address: IpAddr) -> bool {
        [Some(self.client), Some(self.frontend), self.endpoint]
            .into_iter()
            .flatten()
            .any(|end| end.ip() == address)
    }
}

/// IPv4 addresses as such.
fn unmapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(six) => six.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// An end of a packet, without a port that nobody read.
fn shown(end: SocketAddr) -> String {
    if end.port() == 0 { end.ip().to_string() } else { end.to_string() }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use lb_common::byteorder::Be16;

    use super::*;

    fn event(kind: EventKind) -> Event {
        let mapped = |text: &str| {
            let address: std::net::Ipv4Addr = text.parse().unwrap();
            lb_common::address::Ip6::from(address.to_ipv6_mapped())
        };
        Event {
            nanos: 1_500_000_000,
            client: mapped("10.244.0.5"),
            frontend: mapped("10.96.0.10"),
            endpoint: lb_common::address::Ip6::from(Ipv6Addr::UNSPECIFIED),
            service: 0,
            micros: 48,
            interface: 7,
            client_port: Be16::new(40_000),
            frontend_port: Be16::new(80),
            endpoint_port: Be16::new(0),
            protocol: 6,
            kind: kind as u8,
            reason: Reason::NoEndpoint as u8,
            state: State::TimeWait as u8,
            zero: 0,
        }
    }

    #[test]
    fn a_line_says_what_happened_and_why() {
        let row = |event| EventRow::new(&event, &TablesView::default(), Timestamp::UNIX_EPOCH).unwrap();
        let refused = row(event(EventKind::Refused));
        let line = refused.line();
        assert!(line.contains("refused   TCP   10.244.0.5:40000 -> 10.96.0.10:80  no_endpoint: "), "{line}");
        assert_eq!((refused.endpoint, refused.micros, refused.state), (None, None, None));
        assert_eq!(refused.time.as_millisecond(), 1_500);
        let mut answered = event(EventKind::Answered);
        answered.endpoint = answered.client;
        answered.endpoint_port = Be16::new(8080);
        let line = row(answered).line();
        assert!(line.ends_with("endpoint 10.244.0.5:8080  after 48us"), "{line}");
        assert!(row(event(EventKind::Closed)).line().ends_with("10.96.0.10:80  TIME_WAIT"));
        assert!(refused.has("10.96.0.10".parse().unwrap()) && !refused.has("10.96.0.11".parse().unwrap()));
        let mut unknown = event(EventKind::Closed);
        unknown.kind = 77;
        assert_eq!(EventRow::new(&unknown, &TablesView::default(), Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn a_packet_without_ports_is_shown_without_them() {
        let mut dropped = event(EventKind::Dropped);
        (dropped.client_port, dropped.frontend_port) = (Be16::new(0), Be16::new(0));
        let line = EventRow::new(&dropped, &TablesView::default(), Timestamp::UNIX_EPOCH).unwrap().line();
        assert!(line.contains("10.244.0.5 -> 10.96.0.10  no_endpoint"), "{line}");
    }
}
