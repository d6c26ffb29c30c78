//! ICMP and ICMPv6 errors, built from their fields.

use std::net::IpAddr;

use etherparse::Ipv4Header;
use etherparse::checksum::Sum16BitWords;
use lb_common::proto;

use super::packet::{ETH_LEN, Mac, Packet, frame, pseudo_header};

/// A kind of error.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Type and code in ICMP.
    pub v4: [u8; 2],
    /// Type and code in ICMPv6.
    pub v6: [u8; 2],
    /// What stands in the four bytes behind the checksum.
    pub specific: [u8; 4],
}

/// The errors that quote a packet.
pub const KINDS: [Kind; 6] = [
    // Port unreachable (RFC 792; RFC 4443 3.1).
    Kind { v4: [3, 3], v6: [1, 4], specific: [0; 4] },
    // Fragmentation needed with its MTU (RFC 1191); packet too big (RFC 4443 3.2). An MTU of 1400.
    Kind { v4: [3, 4], v6: [2, 0], specific: [0, 0, 0x05, 0x78] },
    // Host unreachable; administratively prohibited.
    Kind { v4: [3, 1], v6: [1, 1], specific: [0; 4] },
    // Time exceeded in transit.
    Kind { v4: [11, 0], v6: [3, 0], specific: [0; 4] },
    // Parameter problem, with its pointer.
    Kind { v4: [12, 0], v6: [4, 0], specific: [16, 0, 0, 0] },
    // Source quench; a type that nobody assigned yet: errors are below 128.
    Kind { v4: [4, 0], v6: [100, 7], specific: [1, 2, 3, 4] },
];

/// An error about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Source and destination MAC address.
    pub ethernet: (Mac, Mac),
    /// Who sends it.
    pub from: IpAddr,
    /// Who gets it.
    pub to: IpAddr,
    /// Index into [`KINDS`].
    pub kind: usize,
    /// What it is about.
    pub about: Packet,
    /// Bytes that it quotes of what follows the IP header of the packet it is about; it cannot quote more than there are.
    pub quoted: usize,
    /// What follows the quote.
    pub rest: Vec<u8>,
    /// IPv4 options of the error itself, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Bytes to add to the quoted packet behind its IP header, with the number of the protocol that they are of: extension
    /// headers (IPv6).
    pub extensions: Option<(u8, Vec<u8>)>,
}

impl Error {
    /// An error about a packet to its sender, quoting as much as there is, up to 64 bytes of the transport header and what
    /// follows.
    pub fn new(from: IpAddr, kind: usize, about: &Packet) -> Self {
        Self {
            ethernet: ([2, 0, 0, 0, 0, 7], [2, 0, 0, 0, 0, 6]),
            from,
            to: about.src.ip(),
            kind,
            about: about.clone(),
            quoted: 64,
            rest: Vec::new(),
            options: Vec::new(),
            extensions: None,
        }
    }

    /// The same error with other ends and another quoted packet.
    #[must_use]
    pub fn becomes(&self, from: IpAddr, to: IpAddr, about: &Packet) -> Self {
        Self { from, to, about: about.clone(), ..self.clone() }
    }

    /// The same error to another device.
    #[must_use]
    pub fn to_mac(&self, mac: Mac) -> Self {
        Self { ethernet: (self.ethernet.0, mac), ..self.clone() }
    }

    /// The quote: from the IP header of the packet that the error is about.
    pub fn quote(&self) -> Vec<u8> {
        let mut packet = self.about.bytes().split_off(ETH_LEN);
        let header = if self.from.is_ipv6() { 40 } else { 20 + self.about.options.len() };
        packet.truncate(header + self.quoted);
        if let Some((protocol, extensions)) = &self.extensions {
            packet[6] = *protocol;
            let payload = u16::from_be_bytes([packet[4], packet[5]]) + extensions.len() as u16;
            packet[4..6].copy_from_slice(&payload.to_be_bytes());
            packet.splice(header..header, extensions.iter().copied());
        }
        packet
    }

    /// The error as it lies in memory, from the Ethernet header on.
    pub fn bytes(&self) -> Vec<u8> {
        let v6 = self.from.is_ipv6();
        let kind = KINDS[self.kind];
        let [number, code] = if v6 { kind.v6 } else { kind.v4 };
        let protocol = if v6 { proto::ICMPV6 } else { proto::ICMP };
        let mut message = [&[number, code, 0, 0][..], &kind.specific, &self.quote(), &self.rest].concat();
        let pseudo = if v6 {
            pseudo_header(self.from, self.to, protocol, message.len())
        } else {
            Sum16BitWords::new()
        };
        let sum = pseudo.add_slice(&message).ones_complement();
        message[2..4].copy_from_slice(&sum.to_ne_bytes());
        let fields = Ipv4Header {
            identification: 0x0815,
            time_to_live: 61,
            options: self.options.as_slice().try_into().expect("options of up to 40 bytes"),
            ..Ipv4Header::default()
        };
        let ethernet = [self.ethernet.1, self.ethernet.0].concat();
        frame(ethernet, (self.from, self.to), protocol, fields, &message)
    }
}
