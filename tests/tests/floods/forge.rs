//! Frames that an attacker makes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_common::proto::{self, tcp::SYN};
use lb_tests::datapath::packet::{Checksum, Mac, Packet};

/// A step of Knuth's MMIX generator and a shift: fast, and the same on every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.word() as usize % limit
    }
}

/// An IPv4 frame whose source address and port change, with checksums that are right.
pub(crate) struct Template {
    frame: Vec<u8>,
    /// Where its transport checksum lies.
    checksum: usize,
    /// Sums of IP header and of transport with pseudo header, without source and checksum.
    sums: [u32; 2],
}

const IP_CHECKSUM: usize = 24;
const SOURCE: usize = 26;
const SOURCE_PORT: usize = 34;
const DESTINATION_PORT: usize = 36;

impl Template {
    /// SYNs to an address.
    pub(crate) fn tcp(from: Mac, to_mac: Mac, to: SocketAddr) -> Self {
        Self::new(proto::TCP, from, to_mac, to, 50)
    }

    /// Datagrams to an address.
    pub(crate) fn udp(from: Mac, to_mac: Mac, to: SocketAddr) -> Self {
        Self::new(proto::UDP, from, to_mac, to, 40)
    }

    fn new(protocol: u8, eth_src: Mac, eth_dst: Mac, to: SocketAddr, checksum: usize) -> Self {
        let nobody = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let packet = Packet { eth_src, eth_dst, ..Packet::new(protocol, nobody, to, SYN) };
        // The sum over the pseudo header stands where the checksum will: the template's own sums begin with it.
        let mut frame = packet.with_checksum(Checksum::Partial).bytes();
        frame[IP_CHECKSUM..IP_CHECKSUM + 2].fill(0);
        let sum = |bytes: &[u8]| {
            bytes
                .chunks(2)
                .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)))
                .sum()
        };
        let sums = [sum(&frame[14..34]), sum(&frame[34..])];
        Self { frame, checksum, sums }
    }

    fn from(&mut self, source: u32, port: u16) -> &[u8] {
        let address = (source >> 16) + (source & 0xffff);
        self.frame[SOURCE..SOURCE + 4].copy_from_slice(&source.to_be_bytes());
        self.frame[SOURCE_PORT..SOURCE_PORT + 2].copy_from_slice(&port.to_be_bytes());
        for (at, sum) in
            [(IP_CHECKSUM, self.sums[0] + address), (self.checksum, self.sums[1] + address + u32::from(port))]
        {
            let folded = (sum & 0xffff) + (sum >> 16);
            let folded = (folded & 0xffff) + (folded >> 16);
            self.frame[at..at + 2].copy_from_slice(&(!folded as u16).to_be_bytes());
        }
        &self.frame
    }

    /// The frame from a random source that could be one: not of the networks of the lab.
    pub(crate) fn next(&mut self, random: &mut Random) -> &[u8] {
        let source = u32::from(Ipv4Addr::new(100, 0, 0, 0)) | random.word() & 0x00ff_ffff;
        let port = 1_024 + random.below(60_000) as u16;
        self.from(source, port)
    }

    /// Frames from random sources, for [`lb_tests::workload::Flood`].
    pub(crate) fn random_sources(mut self, seed: u64) -> impl FnMut(u64, &mut Vec<u8>) + Send + 'static {
        let mut random = Random::new(seed);
        move |_, frame| {
            frame.clear();
            frame.extend_from_slice(self.next(&mut random));
        }
    }

    /// The frame from an address to another port.
    pub(crate) fn at_port(&mut self, source: IpAddr, port: u16) -> &[u8] {
        let IpAddr::V4(source) = source else { panic!("{source} is not IPv4") };
        let old = u16::from_be_bytes([self.frame[DESTINATION_PORT], self.frame[DESTINATION_PORT + 1]]);
        self.frame[DESTINATION_PORT..DESTINATION_PORT + 2].copy_from_slice(&port.to_be_bytes());
        self.sums[1] = self.sums[1] - u32::from(old) + u32::from(port);
        self.from(source.into(), 40_000)
    }
}

/// A frame with some of its bytes or its length changed at random.
pub(crate) fn malformed(good: &[u8], random: &mut Random, frame: &mut Vec<u8>) {
    frame.clear();
    frame.extend_from_slice(good);
    for _ in 0..=random.below(4) {
        // The addresses of the Ethernet header stay, and so does the destination: it is to be ours.
        let at = 12 + random.below(frame.len() - 12);
        if !(30..34).contains(&at) {
            frame[at] = random.word() as u8;
        }
    }
    match random.below(4) {
        0 => frame.truncate(14 + random.below(frame.len() - 14)),
        1 => frame.extend((0..random.below(64)).map(|at| at as u8)),
        _ => {}
    }
    if frame[12..14] == [8, 0] && random.below(3) == 0 {
        // Fragments, ICMP, SCTP and others.
        let at = [20, 21, 23][random.below(3)];
        if let Some(byte) = frame.get_mut(at) {
            *byte = [1, 6, 17, 132, 136, 58, 44, 0x20][random.below(8)];
        }
    }
}

/// An ICMP error to a Service's address about an answer of a live connection, with another sequence number in what it quotes:
/// "fragmentation needed" or "port unreachable".
pub(crate) fn icmp_error(
    (from, to): (Mac, Mac),
    attacker: IpAddr,
    vip: SocketAddr,
    client: SocketAddr,
    needs_fragmentation: bool,
    sequence: u32,
) -> Vec<u8> {
    use etherparse::{Icmpv4Type, PacketBuilder, icmpv4::DestUnreachableHeader};
    let (IpAddr::V4(source), IpAddr::V4(service)) = (attacker, vip.ip()) else {
        panic!("{attacker} and {vip}: IPv4 alone")
    };
    let about = Packet { sequence, ..Packet::new(proto::TCP, vip, client, proto::tcp::ACK) }.bytes();
    let kind = if needs_fragmentation {
        DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 576 }
    } else {
        DestUnreachableHeader::Port
    };
    let builder = PacketBuilder::ethernet2(from, to)
        .ipv4(source.octets(), service.octets(), 64)
        .icmpv4(Icmpv4Type::DestinationUnreachable(kind));
    let mut frame = Vec::new();
    builder.write(&mut frame, &about[14..14 + 28]).expect("an error");
    frame
}
