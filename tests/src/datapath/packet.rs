//! Packets: built from their fields, checksums and all, and verified from scratch.

pub mod sctp;

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use etherparse::checksum::Sum16BitWords;
use etherparse::{IpNumber, Ipv4Header, Ipv6Header, NetSlice, SlicedPacket, TcpHeader, UdpHeader};
use lb_common::proto;

/// A MAC address.
pub type Mac = [u8; 6];

/// Length of an Ethernet header.
pub const ETH_LEN: usize = 14;

/// What the transport checksum field of a packet holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The checksum.
    Complete,
    /// The sum over the pseudo header, for a device or the receiver to complete. Of SCTP nothing, which is 0.
    Partial,
    /// 0: UDP without a checksum.
    Absent,
}

/// The fields of a TCP, UDP or SCTP packet that matter to a Service proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source MAC address.
    pub eth_src: Mac,
    /// Destination MAC address.
    pub eth_dst: Mac,
    /// Source address and port.
    pub src: SocketAddr,
    /// Destination address and port.
    pub dst: SocketAddr,
    /// IP protocol number: TCP, UDP or SCTP.
    pub protocol: u8,
    /// TCP flags; of SCTP what its chunks say ([`lb_common::sctp`]).
    pub flags: u8,
    /// TCP sequence number, SCTP verification tag.
    pub sequence: u32,
    /// What follows the transport header.
    pub payload: Vec<u8>,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// What the checksum field holds.
    pub checksum: Checksum,
}

impl Packet {
    /// A packet with a short payload (none if TCP and `SYN`).
    pub fn new(protocol: u8, src: SocketAddr, dst: SocketAddr, flags: u8) -> Self {
        let payload = if flags & proto::tcp::SYN == 0 { b"request".to_vec() } else { Vec::new() };
        Self {
            eth_src: [2, 0, 0, 0, 0, 1],
            eth_dst: [2, 0, 0, 0, 0, 2],
            src,
            dst,
            protocol,
            flags,
            sequence: 0x0102_0304,
            payload,
            options: Vec::new(),
            ttl: 63,
            checksum: Checksum::Complete,
        }
    }

    /// The same packet with other addresses and ports.
    #[must_use]
    pub fn between(&self, src: SocketAddr, dst: SocketAddr) -> Self {
        Self { src, dst, ..self.clone() }
    }

    /// The same packet to another device.
    #[must_use]
    pub fn to_mac(&self, eth_dst: Mac) -> Self {
        Self { eth_dst, ..self.clone() }
    }

    /// The same packet with that payload.
    #[must_use]
    pub fn with_payload(&self, payload: &[u8]) -> Self {
        Self { payload: payload.to_vec(), ..self.clone() }
    }

    /// The same packet with that in its checksum field.
    #[must_use]
    pub fn with_checksum(&self, checksum: Checksum) -> Self {
        Self { checksum, ..self.clone() }
    }

    /// Bytes from the IP header on.
    pub fn ip_len(&self) -> u64 {
        (self.bytes().len() - ETH_LEN) as u64
    }

    /// The packet as it lies in memory, from the Ethernet header on.
    pub fn bytes(&self) -> Vec<u8> {
        self.framed(&self.transport())
    }

    /// The frame around a transport header and payload.
    fn framed(&self, transport: &[u8]) -> Vec<u8> {
        let ethernet = [self.eth_dst, self.eth_src].concat();
        let fields = Ipv4Header {
            identification: 0x4711,
            time_to_live: self.ttl,
            options: self.options.as_slice().try_into().expect("options of up to 40 bytes"),
            ..Ipv4Header::default()
        };
        frame(ethernet, (self.src.ip(), self.dst.ip()), self.protocol, fields, transport)
    }

    /// Transport header and payload.
    pub fn transport(&self) -> Vec<u8> {
        if self.protocol == proto::SCTP {
            return sctp::bytes(self);
        }
        let len = self.payload.len();
        let (mut bytes, field) = if self.protocol == proto::TCP {
            let mut header = TcpHeader::new(self.src.port(), self.dst.port(), self.sequence, 64_240);
            header.acknowledgment_number = 0x0a0b_0c0d;
            header.fin = self.flags & proto::tcp::FIN != 0;
            header.syn = self.flags & proto::tcp::SYN != 0;
            header.rst = self.flags & proto::tcp::RST != 0;
            header.ack = self.flags & proto::tcp::ACK != 0;
            (header.to_bytes().to_vec(), 16)
        } else {
            let header = UdpHeader {
                source_port: self.src.port(),
                destination_port: self.dst.port(),
                length: (UdpHeader::LEN + len) as u16,
                checksum: 0,
            };
            (header.to_bytes().to_vec(), 6)
        };
        bytes.extend(&self.payload);
        let pseudo = pseudo_header(self.src.ip(), self.dst.ip(), self.protocol, bytes.len());
        let sum = match self.checksum {
            Checksum::Complete => match pseudo.add_slice(&bytes).ones_complement() {
                // RFC 768: a checksum of zero is sent as all ones; 0 says there is none.
                0 if self.protocol == proto::UDP => 0xffff,
                sum => sum,
            },
            Checksum::Partial => !pseudo.ones_complement(),
            Checksum::Absent => 0,
        };
        bytes[field..field + 2].copy_from_slice(&sum.to_ne_bytes());
        bytes
    }

    /// The port unreachable that refuses this packet (S-21): from its destination, back to its sender's device.
    pub fn refusal(&self) -> Vec<u8> {
        self.refusal_of(&self.bytes())
    }

    /// As [`Packet::refusal`], when that is what the packet looked like: with other headers in front of the transport.
    pub fn refusal_of(&self, original: &[u8]) -> Vec<u8> {
        let header = original.len() - self.transport().len();
        let quoted = header
            + match self.protocol {
                proto::TCP => 20,
                // With the tag of an INIT.
                proto::SCTP if original.len() >= header + 20 => 20,
                proto::SCTP => 12,
                _ => 8,
            };
        let quote = &original[ETH_LEN..quoted];
        // A quoted checksum that is not completed yet will be on the way: the sum has to be right for that.
        let mut summed = quote.to_vec();
        if self.checksum == Checksum::Partial {
            let transport = header - ETH_LEN;
            let field = transport + if self.protocol == proto::TCP { 16 } else { 6 };
            let sum = Sum16BitWords::new().add_slice(&summed[transport..]).ones_complement();
            summed[field..field + 2].copy_from_slice(&sum.to_ne_bytes());
        }
        let v6 = self.src.is_ipv6();
        let (kind, pseudo) = if v6 {
            ([1, 4], pseudo_header(self.dst.ip(), self.src.ip(), proto::ICMPV6, 8 + quote.len()))
        } else {
            ([3, 3], Sum16BitWords::new())
        };
        let sum = pseudo.add_slice(&kind).add_slice(&summed).ones_complement().to_ne_bytes();
        let icmp = [&kind[..], &sum, &[0; 4], quote].concat();
        let ethernet = [self.eth_src, self.eth_dst].concat();
        let protocol = if v6 { proto::ICMPV6 } else { proto::ICMP };
        // Precedence "internetwork control", as the kernel's own errors.
        let dscp = 48.try_into().expect("a DSCP");
        let fields = Ipv4Header { dscp, time_to_live: 64, ..Ipv4Header::default() };
        frame(ethernet, (self.dst.ip(), self.src.ip()), protocol, fields, &icmp)
    }
}

/// A frame: MAC addresses, EtherType, IP header, payload. The IPv6 header takes its hop limit from the IPv4 fields.
pub(super) fn frame(
    mut ethernet: Vec<u8>,
    ends: (IpAddr, IpAddr),
    protocol: u8,
    fields: Ipv4Header,
    payload: &[u8],
) -> Vec<u8> {
    match ends {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = Ipv4Header {
                dont_fragment: true,
                protocol: IpNumber(protocol),
                source: source.octets(),
                destination: destination.octets(),
                ..fields
            };
            header.set_payload_len(payload.len()).expect("a payload below 64 KiB");
            header.header_checksum = header.calc_header_checksum();
            ethernet.extend([0x08, 0x00]);
            ethernet.extend(header.to_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                payload_length: payload.len() as u16,
                next_header: IpNumber(protocol),
                hop_limit: fields.time_to_live,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv6Header::default()
            };
            ethernet.extend([0x86, 0xdd]);
            ethernet.extend(header.to_bytes());
        }
        mixed => panic!("addresses of two families: {mixed:?}"),
    }
    ethernet.extend(payload);
    ethernet
}

/// The sum over a pseudo header (RFC 9293 3.1, RFC 8200 8.1).
pub(super) fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> Sum16BitWords {
    let add = |sum: Sum16BitWords, address: IpAddr| match address {
        IpAddr::V4(address) => sum.add_slice(&address.octets()),
        IpAddr::V6(address) => sum.add_slice(&address.octets()),
    };
    let sum = add(add(Sum16BitWords::new(), src), dst);
    sum.add_slice(&(len as u32).to_be_bytes()).add_slice(&[0, protocol])
}

/// Verifies every checksum of a TCP, UDP, SCTP, ICMP or ICMPv6 packet from scratch.
///
/// # Errors
/// What is wrong with it.
pub fn verify(bytes: &[u8]) -> Result<()> {
    let sliced = SlicedPacket::from_ethernet(bytes).context("not a packet")?;
    let (src, dst, payload): (IpAddr, IpAddr, _) = match sliced.net.context("no IP header")? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            ensure!(header.header_checksum == header.calc_header_checksum(), "IPv4 header checksum");
            (header.source.into(), header.destination.into(), ip.payload().clone())
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), ip.payload().clone())
        }
        other => anyhow::bail!("not IP: {other:?}"),
    };
    let protocol = payload.ip_number.0;
    let pseudo = match protocol {
        proto::SCTP => {
            ensure!(sctp::is_right(payload.payload), "SCTP checksum");
            return Ok(());
        }
        proto::ICMP => Sum16BitWords::new(),
        proto::UDP if payload.payload[6..8] == [0, 0] => return Ok(()),
        _ => pseudo_header(src, dst, protocol, payload.payload.len()),
    };
    let rest = pseudo.add_slice(payload.payload).ones_complement();
    ensure!(rest == 0, "checksum of protocol {protocol} is off by {rest:04x}");
    Ok(())
}

/// True for a TCP or UDP packet whose checksum field equals the sum over its pseudo header.
pub fn looks_uncompleted(bytes: &[u8]) -> bool {
    let Ok(sliced) = SlicedPacket::from_ethernet(bytes) else { return false };
    let (src, dst, payload): (IpAddr, IpAddr, _) = match sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.payload().clone())
        }
        Some(NetSlice::Ipv6(ip)) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.payload().clone())
        }
        _ => return false,
    };
    let at = if payload.ip_number.0 == proto::TCP { 16 } else { 6 };
    let sum = !pseudo_header(src, dst, payload.ip_number.0, payload.payload.len()).ones_complement();
    payload.payload.get(at..at + 2) == Some(&sum.to_ne_bytes())
}

/// What differs between two packets, for a person to read; `None` when nothing does.
pub fn difference(expected: &[u8], got: &[u8]) -> Option<String> {
    if expected == got {
        return None;
    }
    let mut text = format!("expected {}\n     got {}\n", describe(expected), describe(got));
    for at in (0..expected.len().max(got.len())).step_by(16) {
        let row = |bytes: &[u8]| bytes.get(at..(at + 16).min(bytes.len())).unwrap_or_default().to_vec();
        let (want, have) = (row(expected), row(got));
        if want != have {
            let _ = writeln!(text, "{at:4} expected {want:02x?}\n          got {have:02x?}");
        }
    }
    Some(text)
}

/// A packet in one line.
pub fn describe(bytes: &[u8]) -> String {
    let ends = match SlicedPacket::from_ethernet(bytes) {
        Ok(sliced) => match sliced.net {
            Some(NetSlice::Ipv4(ip)) => {
                format!("{} > {}", ip.header().source_addr(), ip.header().destination_addr())
            }
            Some(NetSlice::Ipv6(ip)) => {
                format!("{} > {}", ip.header().source_addr(), ip.header().destination_addr())
            }
            _ => "no IP".to_owned(),
        },
        Err(error) => error.to_string(),
    };
    format!("{} bytes, {ends}", bytes.len())
}
