//! A hundred thousand packets, valid and mutilated, through every program and mode; and what must hold for any packet.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use lb_common::hash::mix;
use lb_common::headers::{self, Bytes, Headers, Part};
use lb_common::layout::{BackendFlags, Class, Forwarding, FrontendKind, Policy, ServiceVerdict};
use lb_common::proto::{self, tcp};
use lb_tests::datapath::entries::Entry;
use lb_tests::datapath::journey::own_port;
use lb_tests::datapath::packet::{self, Checksum, Packet};
use lb_tests::datapath::{BackendSpec, Datapath, MASQUERADE_PORTS, Outcome, Program, Verdict};

/// Packets for each program and mode.
const PACKETS: u32 = 100_000;
/// Packets between two looks at the counters and changes of the tables.
const BATCH: u32 = 2_000;
/// The seed, unless `LB_TEST_SEED` names another.
const SEED: u64 = 0x5eed_0001;

#[test]
fn any_packet_in_mode_stack() {
    run(Forwarding::Stack);
}

#[test]
fn any_packet_in_mode_redirect() {
    run(Forwarding::Redirect);
}

/// A sequence of numbers that is the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ((u128::from(mix(self.0)) * bound as u128) >> 64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// A Service of the world.
struct Service {
    index: u32,
    protocol: u8,
    kind: FrontendKind,
    vip: SocketAddr,
    backends: Vec<(u32, BackendSpec)>,
}

/// Which of a flow's two translations changed a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pair {
    /// Of its destination, or of the answers' source. Counted.
    First,
    /// Of its source, to an address of the node, or back.
    Second,
}

/// Services, pods and what was seen.
struct World {
    datapath: Datapath,
    random: Random,
    services: Vec<Service>,
    pods: Vec<IpAddr>,
    others: Vec<IpAddr>,
    drops: u64,
    /// Drops of fragments among them: some wait for others, and are not counted, or later.
    fragments: u64,
    refusals: u64,
    carried: u64,
    masqueraded: u64,
}

fn host(v6: bool, network: u8, number: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0, 0, network.into(), 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(10, 0, network, number).into()
    }
}

/// The address of the node that flows are masqueraded with.
fn node(v6: bool) -> IpAddr {
    host(v6, 3, 1)
}

impl World {
    fn new(forwarding: Forwarding, seed: u64) -> Result<Self> {
        let mut datapath = Datapath::load(forwarding)?;
        let (mut services, mut pods, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for v6 in [false, true] {
            pods.extend((1..=6).map(|number| host(v6, 1, number)));
            others.extend([host(v6, 2, 1), host(v6, 96, 200), host(v6, 96, 1)]);
            datapath.range(host(v6, 96, 0), if v6 { 64 } else { 24 })?;
            for protocol in [proto::TCP, proto::UDP] {
                use FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort};
                for (number, kind, verdict, endpoints) in [
                    (1, ClusterIp, ServiceVerdict::Random, 4..7),
                    (2, ClusterIp, ServiceVerdict::Random, 1..3),
                    (3, ClusterIp, ServiceVerdict::Random, 1..5),
                    (4, ClusterIp, ServiceVerdict::Reject, 0..0),
                    (5, ClusterIp, ServiceVerdict::Drop, 0..0),
                    (6, NodePort, ServiceVerdict::Random, 2..6),
                    (7, LoadBalancer, ServiceVerdict::Random, 1..4),
                    (8, ExternalIp, ServiceVerdict::Reject, 0..0),
                ] {
                    let network = if kind == ClusterIp { 96 } else { 97 };
                    let port = if kind == NodePort { 30_080 } else { 80 };
                    let vip = SocketAddr::new(host(v6, network, number), port);
                    let spec = |pod: u8| BackendSpec {
                        endpoint: SocketAddr::new(host(v6, 1, pod), 8080),
                        flags: BackendFlags::SERVING | BackendFlags::LOCAL,
                        interface: u32::from(pod % 3),
                        mac: [2, 0, 0, 0, 1, pod],
                    };
                    let specs: Vec<_> = endpoints.map(spec).collect();
                    let index = datapath.empty_service();
                    let first = datapath.next_backend();
                    for spec in &specs {
                        datapath.backend(index, spec)?;
                    }
                    let indices: Vec<u32> = (first..datapath.next_backend()).collect();
                    for class in Class::ALL {
                        datapath.publish_class(index, class, verdict, &indices)?;
                    }
                    datapath.frontend(vip, protocol, index, kind)?;
                    match kind {
                        NodePort => datapath.node_address(vip.ip())?,
                        LoadBalancer => {
                            // One client is not in the range.
                            let flags = Policy::SOURCE_RANGES;
                            datapath.policy(index, Policy { affinity_timeout: 1, flags })?;
                            let ranges = [
                                (host(v6, 1, 1), if v6 { 128 } else { 32 }),
                                (host(v6, 1, 4), if v6 { 126 } else { 30 }),
                            ];
                            datapath.source_ranges(index, &ranges)?;
                        }
                        _ => {}
                    }
                    let backends = (first..).zip(specs).collect();
                    services.push(Service { index, protocol, kind, vip, backends });
                }
            }
        }
        let (IpAddr::V4(four), IpAddr::V6(six)) = (node(false), node(true)) else { unreachable!() };
        datapath.masquerade(0, Some(four), Some(six))?;
        let random = Random(seed);
        Ok(Self {
            datapath,
            random,
            services,
            pods,
            others,
            drops: 0,
            fragments: 0,
            refusals: 0,
            carried: 0,
            masqueraded: 0,
        })
    }

    /// A packet as pods send and receive them, many of them in flows that others belong to as well.
    fn valid(&mut self) -> Packet {
        let random = &mut self.random;
        let service = &self.services[random.below(self.services.len())];
        let v6 = service.vip.is_ipv6();
        let family = |addresses: &[IpAddr]| -> Vec<IpAddr> {
            addresses.iter().copied().filter(|address| address.is_ipv6() == v6).collect()
        };
        let (pods, others) = (family(&self.pods), family(&self.others));
        let pod = SocketAddr::new(random.of(&pods), 40_000 + random.below(40) as u16);
        let serving = SocketAddr::new(random.of(&pods), 8080);
        let (src, dst) = match random.below(12) {
            0..=3 => (pod, service.vip),
            4..=6 => (serving, pod),
            // What a pod answers that reached itself.
            7 => (serving, SocketAddr::new(service.vip.ip(), pod.port())),
            8 => (pod, SocketAddr::new(random.of(&others), 80)),
            // What an endpoint answers to an address of the node.
            9 => (serving, SocketAddr::new(node(v6), own_port(pod.port()))),
            _ => (pod, serving),
        };
        let protocol =
            if random.chance(90) { service.protocol } else { random.of(&[proto::TCP, proto::UDP]) };
        let flags = random.of(&[
            tcp::SYN,
            tcp::SYN | tcp::ACK,
            tcp::ACK,
            tcp::ACK,
            tcp::ACK,
            tcp::FIN | tcp::ACK,
            tcp::RST,
        ]);
        let len = random.of(&[0, 1, 9, 64, 500, 1400]);
        let payload = (0..len).map(|_| random.byte()).collect();
        let options = if random.chance(5) && !v6 { vec![1; random.below(10) * 4 + 4] } else { Vec::new() };
        let absent = protocol == proto::UDP && random.chance(10);
        let checksum = if absent { Checksum::Absent } else { Checksum::Complete };
        Packet { payload, options, checksum, ..Packet::new(protocol, src, dst, flags) }
    }

    /// A packet of any kind: valid, flipped bits, cut, with strange headers, or noise.
    fn any(&mut self) -> Vec<u8> {
        let mut bytes = self.valid().bytes();
        let random = &mut self.random;
        match random.below(8) {
            0 => {
                for _ in 0..=random.below(8) {
                    let at = random.below(bytes.len());
                    bytes[at] ^= 1 << random.below(8);
                }
            }
            1 => {
                // Headers only, where every bit means something.
                for _ in 0..=random.below(4) {
                    let at = 12 + random.below(62.min(bytes.len() - 12));
                    bytes[at] = random.byte();
                }
            }
            2 => bytes.truncate(14 + random.below(bytes.len() - 14)),
            3 => {
                bytes.truncate(14 + random.below(80));
                bytes.iter_mut().skip(14).for_each(|byte| *byte = random.byte());
                // A version that fits, so that the rest is looked at.
                if let Some(first) = bytes.get_mut(14) {
                    *first = random.of(&[0x45, 0x46, 0x4f, 0x60, *first]);
                }
            }
            _ => {}
        }
        // The kernel runs no program on less than the IP header that the EtherType promises.
        let least = match bytes[12..14] {
            [0x08, 0x00] => 34,
            [0x86, 0xdd] => 54,
            _ => 15,
        };
        while bytes.len() < least {
            bytes.push(random.byte());
        }
        bytes
    }

    /// Runs a program on a packet and checks what must hold for any.
    fn check(&mut self, program: Program, packet: &[u8]) -> Result<()> {
        let outcome = self.datapath.run(program, packet)?;
        let Outcome { verdict, packet: after } = &outcome;
        let comes_in = matches!(program, Program::FromPod | Program::FromNet);
        let place = Place::of(packet);
        let fragment = place.as_ref().is_some_and(|place| place.fragment);
        if *verdict == Verdict::Drop && place.is_some_and(|place| place.fragment && !place.later) {
            // Others waited for it, and it is sent back with them; what is left of it is one of these.
            ensure!(
                matches!(program, Program::FromPod | Program::FromNet | Program::ToPod),
                "dropped by {program:?}"
            );
            self.drops += 1;
            self.fragments += 1;
            return Ok(());
        }
        if *verdict == Verdict::Redirect && is_icmp(after) {
            ensure!(comes_in, "a refusal from the wrong program");
            ensure!((70..=162).contains(&after.len()), "a refusal of {} bytes", after.len());
            self.refusals += 1;
        } else {
            ensure!(after.len() == packet.len(), "{} bytes became {}", packet.len(), after.len());
            let carried = after != packet;
            ensure!(*verdict != Verdict::Redirect || comes_in, "{verdict:?} by {program:?}");
            if *verdict == Verdict::Drop {
                let waits = fragment && program == Program::ToPod;
                ensure!((comes_in || waits) && !carried, "dropped by {program:?}, changed: {carried}");
                self.drops += 1;
                self.fragments += u64::from(fragment);
            }
            if carried {
                match self.check_ends(program, packet, after)? {
                    Pair::First => self.carried += 1,
                    Pair::Second => self.masqueraded += 1,
                }
            }
        }
        if packet::verify(packet).is_ok() && !packet::looks_uncompleted(packet) {
            packet::verify(after).context("valid before, not afterwards")?;
        }
        Ok(())
    }

    /// Only addresses, ports, checksums and the receiver's MAC address may change, and to what the tables say.
    fn check_ends(&self, program: Program, before: &[u8], after: &[u8]) -> Result<Pair> {
        let (old, new) = (ends(before).context("no ends")?, ends(after).context("no ends")?);
        let v6 = old.0.is_ipv6();
        let Place { transport, protocol, later, .. } = Place::of(before).context("no headers")?;
        let field = transport + if protocol == proto::TCP { 16 } else { 6 };
        let addresses = if v6 { 22..54 } else { 24..34 };
        let may_change = |at: &usize| {
            let ports = || (transport..transport + 4).contains(at) || (field..field + 2).contains(at);
            *at < 6 || addresses.contains(at) || (!later && ports())
        };
        let strange = (0..before.len()).find(|at| before[*at] != after[*at] && !may_change(at));
        ensure!(strange.is_none(), "byte {strange:?} changed");
        let comes_in = matches!(program, Program::FromPod | Program::FromNet);
        // A later fragment has no ports, and in IPv6 need not have the protocol of its first one.
        let is = |one: SocketAddr, other: SocketAddr| {
            one.ip() == other.ip() && (later || one.port() == other.port())
        };
        let services =
            || self.services.iter().filter(|service| service.protocol == protocol || (later && v6));
        let serves = |service: &Service, end| service.backends.iter().any(|(_, spec)| is(spec.endpoint, end));
        let first = |service: &Service| -> bool {
            // There; or back, where packets come in from outside only to a pod that reached itself.
            let itself = old.1.ip() == service.vip.ip() && old.0.ip() == new.1.ip();
            (comes_in && is(old.1, service.vip) && serves(service, new.1))
                || ((program != Program::FromNet || itself)
                    && serves(service, old.0)
                    && is(new.0, service.vip))
        };
        if services().any(first) {
            return Ok(Pair::First);
        }
        let (from, count) = MASQUERADE_PORTS;
        let is_node = |end: SocketAddr| {
            end.ip() == node(v6) && (later || (from..from + count).contains(&end.port().into()))
        };
        let second = |service: &Service| -> bool {
            (!comes_in && old.1 == new.1 && serves(service, old.1) && is_node(new.0))
                || (comes_in && old.0 == new.0 && serves(service, old.0) && is_node(old.1) && !is_node(new.1))
        };
        ensure!(services().any(second), "{old:?} became {new:?}");
        Ok(Pair::Second)
    }

    /// The counters agree with what was seen.
    fn check_counters(&mut self) -> Result<()> {
        let reading = self.datapath.counters(1, 1)?;
        let (most, waiting) = (self.drops + self.refusals, self.fragments);
        ensure!(
            (most - waiting..=most).contains(&reading.reasons()),
            "{} reasons counted, {} drops ({waiting} of fragments) and {} refusals seen",
            reading.reasons(),
            self.drops,
            self.refusals
        );
        let carried = reading.packets();
        ensure!(carried == self.carried, "{carried} packets counted, {} seen", self.carried);
        Ok(())
    }

    /// Every entry has its counterpart, and says what the tables allow.
    fn check_entries(&mut self) -> Result<usize> {
        let entries: HashMap<_, Entry> =
            self.datapath.entries()?.into_iter().map(|entry| (entry.key, entry)).collect();
        ensure!(entries.len() < 60_000, "{} entries: the kernel evicts some, count less", entries.len());
        for entry in entries.values() {
            let other = entries.get(&entry.other()).with_context(|| format!("no counterpart: {entry:?}"))?;
            ensure!(other.other() == entry.key, "{entry:?}\n{other:?}");
            ensure!(other.reply != entry.reply && other.hairpin == entry.hairpin, "{entry:?}\n{other:?}");
            ensure!((other.service, other.backend) == (entry.service, entry.backend), "{entry:?}\n{other:?}");
            if entry.reply {
                continue;
            }
            let service = self.services.iter().find(|service| service.index == entry.service);
            let service = service.with_context(|| format!("no such Service: {entry:?}"))?;
            let backend = service.backends.iter().find(|(index, _)| *index == entry.backend);
            let (_, spec) = backend.with_context(|| format!("no such backend: {entry:?}"))?;
            ensure!(entry.key.protocol == service.protocol, "{entry:?}");
            ensure!(entry.becomes.dst == spec.endpoint, "{entry:?}");
            if entry.source {
                ensure!(entry.key.dst == spec.endpoint && !entry.masquerade, "{entry:?}");
                ensure!(entry.becomes.src.ip() == node(entry.key.src.is_ipv6()), "{entry:?}");
                continue;
            }
            ensure!(entry.key.dst == service.vip, "{entry:?}");
            let wanted = entry.net || service.kind != FrontendKind::ClusterIp;
            let itself = entry.key.src.ip() == spec.endpoint.ip();
            ensure!(entry.hairpin == (itself && !(entry.net && wanted)), "{entry:?}");
            ensure!(entry.masquerade == (wanted && !entry.hairpin), "{entry:?}");
            let source = if entry.hairpin { service.vip.ip() } else { entry.key.src.ip() };
            ensure!(entry.becomes.src.ip() == source, "{entry:?}");
        }
        Ok(entries.len())
    }

    /// Something changes: endpoints stop serving and serve again, Services lose their endpoints and get them back.
    fn change(&mut self) -> Result<()> {
        let random = &mut self.random;
        let at = random.below(self.services.len());
        let service = &self.services[at];
        if service.backends.is_empty() {
            return Ok(());
        }
        let serving: BTreeSet<u32> =
            service.backends.iter().map(|(index, _)| *index).filter(|_| random.chance(60)).collect();
        for (index, spec) in &service.backends {
            let flags = if serving.contains(index) { spec.flags } else { BackendFlags::LOCAL };
            self.datapath.set_backend(*index, service.index, &BackendSpec { flags, ..*spec })?;
        }
        let verdict = if serving.is_empty() { ServiceVerdict::Reject } else { ServiceVerdict::Random };
        let serving: Vec<u32> = serving.into_iter().collect();
        for class in Class::ALL {
            self.datapath.publish_class(service.index, class, verdict, &serving)?;
        }
        self.datapath.advance_epoch()
    }
}

fn is_icmp(packet: &[u8]) -> bool {
    match packet.get(12..14) {
        Some([0x08, 0x00]) => packet.get(23) == Some(&proto::ICMP),
        Some([0x86, 0xdd]) => packet.get(20) == Some(&proto::ICMPV6),
        _ => false,
    }
}

/// What lies where in a packet.
struct Place {
    /// Offset of the transport header, or of what a later fragment has instead.
    transport: usize,
    protocol: u8,
    /// True for a fragment that is not the first.
    later: bool,
    /// True for any fragment.
    fragment: bool,
}

/// A packet whose headers can be read.
struct Frame<'a>(&'a [u8]);

impl Bytes for Frame<'_> {
    fn read<const L: usize>(&self, offset: usize) -> Option<[u8; L]> {
        self.0.get(offset..offset + L)?.try_into().ok()
    }
}

impl Place {
    fn of(packet: &[u8]) -> Option<Self> {
        fn place<A>(headers: &Headers<A>) -> Place {
            let (transport, later) = (headers.transport as usize, headers.part == Part::Later as u8);
            let fragment = headers.part != Part::Whole as u8;
            Place { transport, protocol: headers.protocol, later, fragment }
        }
        if packet.get(12..14)? == [0x08, 0x00] {
            headers::ipv4(&Frame(packet), 14).ok().map(|headers| place(&headers))
        } else {
            headers::ipv6(&Frame(packet), 14).ok().map(|headers| place(&headers))
        }
    }
}

/// Where a packet comes from and goes, whatever else is wrong with it. Ports say nothing in a later fragment.
fn ends(packet: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let place = Place::of(packet)?;
    let port = |at: usize| match packet.get(at..at + 2) {
        Some(bytes) => Some(u16::from_be_bytes(bytes.try_into().ok()?)),
        None => place.later.then_some(0),
    };
    let (src, dst): (IpAddr, IpAddr) = if packet[12..14] == [0x08, 0x00] {
        let octets = |at: usize| packet.get(at..at + 4)?.try_into().ok().map(|octets: [u8; 4]| octets.into());
        (octets(26)?, octets(30)?)
    } else {
        let octets =
            |at: usize| packet.get(at..at + 16)?.try_into().ok().map(|octets: [u8; 16]| octets.into());
        (octets(22)?, octets(38)?)
    };
    let (from, to) = (port(place.transport)?, port(place.transport + 2)?);
    Some((SocketAddr::new(src, from), SocketAddr::new(dst, to)))
}

fn run(forwarding: Forwarding) {
    lb_tests::datapath::pin();
    let seed =
        std::env::var("LB_TEST_SEED").map_or(SEED, |seed| seed.parse().expect("LB_TEST_SEED: a number"));
    println!("{forwarding:?}: LB_TEST_SEED={seed}");
    let began = Instant::now();
    let mut world = World::new(forwarding, seed).expect("the programs load");
    for number in 0..PACKETS {
        let packet = world.any();
        for program in Program::ALL {
            if let Err(error) = world.check(program, &packet) {
                panic!("seed {seed}, packet {number}, {program:?}: {error:#}\n{packet:02x?}");
            }
        }
        if number % BATCH == BATCH - 1 {
            world.check_counters().and_then(|()| world.change()).unwrap_or_else(|error| {
                panic!("seed {seed}, up to packet {number}: {error:#}");
            });
        }
    }
    let entries = world.check_entries().unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
    let World { drops, refusals, carried, masqueraded, .. } = world;
    println!(
        "{carried} carried, {masqueraded} masqueraded, {drops} dropped, {refusals} refused, {entries} entries, {:?}",
        began.elapsed()
    );
    // Enough of everything, or the packets were not what they are meant to be.
    for count in [carried, masqueraded, drops, refusals, entries as u64] {
        assert!(count > u64::from(PACKETS) / 100, "{carried} {masqueraded} {drops} {refusals} {entries}");
    }
}
