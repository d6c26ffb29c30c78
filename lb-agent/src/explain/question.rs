//! What is asked: who sends to what.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use lb_common::proto;

/// A client: an address, with or without its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct From {
    /// Its address.
    pub address: IpAddr,
    /// Its port; without one, a new connection is meant.
    pub port: Option<u16>,
}

/// A destination: an address and port with a protocol; for a ping without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct To {
    /// Address and port; the port is 0 for a ping.
    pub end: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
}

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who sends.
    pub from: From,
    /// To what.
    pub to: To,
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse() {
            return Ok(Self { address, port: None });
        }
        let end: SocketAddr = text.parse().map_err(|_| {
            format!("`{text}` is no address such as 10.1.0.7, 10.1.0.7:40000 or [fd00::7]:40000")
        })?;
        Ok(Self { address: end.ip(), port: Some(end.port()) })
    }
}

impl FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is no destination such as 10.96.0.1:443, 10.96.0.10:53/udp, [fd00:96::1]:443/tcp or \
                 10.96.0.1/icmp"
            )
        };
        let (end, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
        let number = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => proto::TCP,
            "udp" => proto::UDP,
            "sctp" => proto::SCTP,
            "icmp" | "icmpv6" | "ping" => {
                let bare = end.strip_prefix('[').and_then(|end| end.strip_suffix(']')).unwrap_or(end);
                let address: IpAddr = bare.parse().map_err(|_| wrong())?;
                let protocol = if address.is_ipv4() { proto::ICMP } else { proto::ICMPV6 };
                return Ok(Self { end: SocketAddr::new(address, 0), protocol });
            }
            _ => return Err(format!("`{protocol}` is none of tcp, udp, sctp and icmp")),
        };
        let end: SocketAddr = end.parse().map_err(|_| wrong())?;
        if end.port() == 0 { Err(wrong()) } else { Ok(Self { end, protocol: number }) }
    }
}

impl Question {
    /// Both ends, checked: of one family.
    ///
    /// # Errors
    /// They are not.
    pub fn new(from: From, to: To) -> Result<Self, String> {
        let (client, server) = (from.address, to.end.ip());
        if client.is_ipv4() != server.is_ipv4() {
            return Err(format!("{client} and {server} are not of one address family: no packet has both"));
        }
        Ok(Self { from, to })
    }

    /// True for a ping.
    pub(super) const fn is_ping(&self) -> bool {
        matches!(self.to.protocol, proto::ICMP | proto::ICMPV6)
    }

    /// The destination as a process of the node means it: no address, or any loopback one, is the loopback address.
    pub(super) fn of_host(mut self) -> Self {
        let address = self.to.end.ip();
        if address.is_loopback() || address.is_unspecified() {
            let meant = match address {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            };
            self.to.end.set_ip(meant);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_as_people_write_them() {
        let from = |text: &str| text.parse::<From>().map(|it| (it.address.to_string(), it.port));
        assert_eq!(from("10.1.0.7"), Ok(("10.1.0.7".into(), None)));
        assert_eq!(from("10.1.0.7:40000"), Ok(("10.1.0.7".into(), Some(40_000))));
        assert_eq!(from("fd00::7"), Ok(("fd00::7".into(), None)));
        assert_eq!(from("[fd00::7]:1"), Ok(("fd00::7".into(), Some(1))));
        assert!(from("web").is_err() && from("10.1.0.7:x").is_err());
        let to = |text: &str| text.parse::<To>().map(|it| (it.end.to_string(), it.protocol));
        assert_eq!(to("10.96.0.1:443"), Ok(("10.96.0.1:443".into(), 6)));
        assert_eq!(to("10.96.0.10:53/UDP"), Ok(("10.96.0.10:53".into(), 17)));
        assert_eq!(to("[fd00:96::1]:9/sctp"), Ok(("[fd00:96::1]:9".into(), 132)));
        assert_eq!(to("fd00:96::1/icmp"), Ok(("[fd00:96::1]:0".into(), 58)));
        for wrong in ["10.96.0.1", "10.96.0.1:0", "10.96.0.1:80/dccp", "web:80", ""] {
            assert!(to(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_packet_has_one_family() {
        let ask = |from: &str, to: &str| Question::new(from.parse().unwrap(), to.parse().unwrap());
        assert!(ask("10.1.0.7", "10.96.0.1:80").is_ok());
        assert!(ask("fd00::7", "10.96.0.1:80").unwrap_err().contains("family"));
        let host = ask("127.0.0.1", "127.0.0.9:30080").unwrap().of_host();
        assert_eq!(host.to.end.to_string(), "127.0.0.1:30080");
    }
}
