//! Runs a plan through the programs and through the model.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::layout::Forwarding;
use lb_common::proto::{self, tcp};
use lb_common::sctp;
use lb_tests::datapath::counters::{self, Reading};
use lb_tests::datapath::entries::{self, Ends};
use lb_tests::datapath::packet::{self, Checksum, Packet};
use lb_tests::datapath::wire::{Device, Wires};
use lb_tests::datapath::{Datapath, Outcome, Program, Verdict};
use lb_tests::model::{self, Expected, Model, Read};

use crate::plan::{Damage, Plan, Shape, Step};
use crate::{express, frames, world};

/// Few source ports for masqueraded flows, so that they meet.
const MASQUERADE_PORTS: (u16, u16) = (20_000, 16);

/// Bytes of the longest packet that the kernel surely takes for a test run: a page less what it needs itself.
pub(crate) const MOST: usize = 3_000;

/// The loaded programs, and what was seen of them.
pub(crate) struct Bench {
    datapath: Datapath,
    redirect: bool,
    seen: BTreeMap<String, u64>,
    /// Routes and devices that the XDP program sends packets on by.
    _wires: Wires,
}

/// What was counted, for a person to read.
pub(crate) struct Seen<'a>(&'a BTreeMap<String, u64>);

impl fmt::Display for Seen<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list: Vec<String> = self.0.iter().map(|(name, count)| format!("{count} {name}")).collect();
        formatter.write_str(&list.join(", "))
    }
}

/// A plan on its way.
struct Run<'a> {
    plan: &'a Plan,
    datapath: &'a mut Datapath,
    model: Model,
    seen: &'a mut BTreeMap<String, u64>,
    /// What the other side of each conversation saw last.
    delivered: BTreeMap<usize, Ends>,
    /// Sides of conversations that sent a first packet in order.
    begun: BTreeSet<(usize, bool)>,
    /// What left the programs for somebody.
    packets: Vec<Vec<u8>>,
    trace: Vec<String>,
    /// Seconds that were waited.
    waited: u32,
}

impl Bench {
    /// Loads the programs.
    pub(crate) fn load(forwarding: Forwarding) -> Result<Self> {
        let (first, count) = MASQUERADE_PORTS;
        // One of the modes answers pings.
        let redirect = forwarding == Forwarding::Redirect;
        let wires = Wires::enter()?;
        let mut datapath = Datapath::load_as(forwarding, (first.into(), count.into()), redirect)?;
        datapath.take_frames(&Device::ALL)?;
        datapath.take_frames_at(model::INTERFACE)?;
        Ok(Self { datapath, redirect, seen: BTreeMap::new(), _wires: wires })
    }

    /// Runs a plan.
    ///
    /// # Errors
    /// Where programs and model disagree.
    pub(crate) fn run(&mut self, plan: &Plan) -> Result<()> {
        loop {
            // Seconds pass in steps only: a sequence that was met by one of the clock is run again.
            let began = second();
            let result = self.attempt(plan);
            if second() == began {
                return result;
            }
        }
    }

    fn attempt(&mut self, plan: &Plan) -> Result<()> {
        self.datapath.clear_services()?;
        self.datapath.forget_flows()?;
        self.datapath.forget_affinities()?;
        self.datapath.forget_fragments()?;
        self.datapath.forget_held()?;
        let mut model = Model::new(self.redirect, self.redirect, MASQUERADE_PORTS);
        world::write(plan, &mut self.datapath, &mut model)?;
        let before = self.datapath.counters(1, 1)?;
        let mut run = Run {
            plan,
            datapath: &mut self.datapath,
            model,
            seen: &mut self.seen,
            delivered: BTreeMap::new(),
            begun: BTreeSet::new(),
            packets: Vec::new(),
            trace: Vec::new(),
            waited: 0,
        };
        let steps =
            plan.steps.iter().try_for_each(|step| if run.model.lost { Ok(()) } else { run.step(step) });
        let result = steps.and_then(|()| if run.model.lost { Ok(()) } else { run.compare(&before) });
        let trace = || format!("after:\n  {}", run.trace.join("\n  "));
        result.with_context(trace)
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> Seen<'_> {
        Seen(&self.seen)
    }

    /// Enough of everything was seen, or the plans are not what they are meant to be.
    pub(crate) fn assert_enough(&self, sequences: u32) {
        for (name, least) in [
            ("carried", 500),
            ("left alone", 100),
            ("dropped", 50),
            ("refused", 20),
            ("opened", 100),
            ("reselected", 4),
            ("masqueraded", 20),
            ("established", 30),
            ("carried by XDP", 20),
            ("given way", 6),
        ] {
            let count = self.seen.get(name).copied().unwrap_or_default();
            assert!(count * 100 >= u64::from(sequences) * least, "too few {name}: {}", self.seen());
        }
    }
}

impl Run<'_> {
    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Talk { conversation, answer, in_order, shape } => {
                let number = usize::from(*conversation) % self.plan.conversations.len();
                let mut shape = shape.clone();
                if *in_order && (!answer || self.delivered.contains_key(&number)) {
                    // One SYN each, then acknowledgements.
                    let begins = self.begun.insert((number, *answer));
                    shape.flags = match (begins, *answer) {
                        (true, false) => tcp::SYN,
                        (true, true) => tcp::SYN | tcp::ACK,
                        (false, _) => tcp::ACK,
                    };
                }
                if *answer { self.answer(number, &shape) } else { self.request(number, &shape) }
            }
            Step::Past { conversation, answer, first, shape } => {
                let number = usize::from(*conversation) % self.plan.conversations.len();
                let mut shape = shape.clone();
                if *first {
                    shape.flags = if *answer { tcp::SYN | tcp::ACK } else { tcp::SYN };
                }
                self.past(number, *answer, &shape)
            }
            Step::Wild { program, src, dst, ports, protocol, shape } => {
                let address = |who| world::who(self.plan, who);
                let ports: Vec<u16> = [ports.0, ports.1].into_iter().map(|port| self.port(port)).collect();
                let src = SocketAddr::new(address(*src), ports[0]);
                let dst = SocketAddr::new(address(*dst), ports[1]);
                let packet = self.build(&Ends { src, dst, protocol: *protocol }, shape);
                let program = Program::ALL[usize::from(*program) % Program::ALL.len()];
                self.pass(program, &packet).map(drop)
            }
            Step::Complain { about, router, code, quoted, shape } => {
                let Some(packet) = self.packets.iter().rev().nth(usize::from(*about)).cloned() else {
                    return Ok(());
                };
                self.complain(&packet, *router, *code, *quoted, shape)
            }
            Step::Lists { service, lists } => {
                let number = usize::from(*service) % self.plan.services.len();
                let index = self.model.tables.services[number].index;
                self.trace.push(format!("Service {index}: {lists:?}"));
                world::publish(index, lists, self.datapath, &mut self.model)
            }
            Step::Wait(seconds) => self.wait(*seconds),
            Step::Evict(which) => self.evict(*which),
        }
    }

    /// One of the ports that mean something.
    fn port(&self, choice: u8) -> u16 {
        let mut ports = vec![world::ENDPOINT_PORT, 40_000, 40_001, MASQUERADE_PORTS.0];
        ports.extend(self.model.tables.frontends.iter().map(|frontend| frontend.vip.port()));
        ports[usize::from(choice) % ports.len()]
    }

    /// A packet of a conversation's client goes all its way.
    fn request(&mut self, number: usize, shape: &Shape) -> Result<()> {
        let (conversation, client) = (self.plan.conversations[number], self.client(number));
        let (vip, protocol) = world::vip(self.plan, conversation.service, conversation.frontend);
        let packet = self.build(&Ends { src: client, dst: vip, protocol }, shape);
        if let Some(ends) = self.travel(world::entrance(client.ip()), &packet)? {
            self.delivered.insert(number, ends);
        }
        Ok(())
    }

    /// The client of a conversation in person.
    fn client(&self, number: usize) -> SocketAddr {
        let conversation = self.plan.conversations[number];
        let client = world::address(self.plan.v6, conversation.client);
        SocketAddr::new(client, 40_000 + u16::from(conversation.port))
    }

    /// A packet between a conversation's client and whoever got its last packet, without the Service, goes all its way.
    fn past(&mut self, number: usize, answer: bool, shape: &Shape) -> Result<()> {
        let Some(delivered) = self.delivered.get(&number) else { return Ok(()) };
        let ends = Ends { src: self.client(number), ..*delivered };
        let ends = if answer { ends.turned() } else { ends };
        let packet = self.build(&ends, shape);
        let known = self.model.entries.len();
        self.travel(world::entrance(ends.src.ip()), &packet)?;
        if self.model.entries.len() < known {
            self.count("given way");
        }
        Ok(())
    }

    /// An ICMP error about a packet goes all its way.
    fn complain(
        &mut self,
        about: &[u8],
        router: Option<bool>,
        code: u8,
        quoted: Option<u8>,
        shape: &Shape,
    ) -> Result<()> {
        let Some((src, dst)) = ends(about) else { return Ok(()) };
        let (from, program) = match router {
            None => (dst, world::entrance(dst)),
            Some(true) => (world::address(self.plan.v6, 0), Program::FromPod),
            Some(false) => (world::host(self.plan.v6, 98, 1), Program::FromNet),
        };
        let quote = &about[14..];
        let quote = &quote[..quoted.map_or(quote.len(), usize::from).min(quote.len())];
        let mut packet = frames::icmp_error(from, src, code, quote);
        self.adorn(&mut packet, shape);
        self.travel(program, &packet).map(drop)
    }

    /// A packet of whoever got a conversation's last packet goes all its way.
    fn answer(&mut self, number: usize, shape: &Shape) -> Result<()> {
        let Some(ends) = self.delivered.get(&number).map(Ends::turned) else { return Ok(()) };
        let packet = self.build(&ends, shape);
        self.travel(world::entrance(ends.src.ip()), &packet).map(drop)
    }

    /// Takes a packet in at a hook and out at the one that its destination then lies behind; with which ends it arrived. One
    /// from outside is shown to the XDP program before: what that sends on is what comes out at the end.
    fn travel(&mut self, program: Program, packet: &[u8]) -> Result<Option<Ends>> {
        let ahead = express::send(self.datapath, program, packet)?;
        let (events, skipped) = (self.model.events.len(), self.seen.get("skipped").copied());
        let left = self.go(program, packet)?;
        if ahead.is_empty() || self.model.lost {
            return Ok(left.as_deref().and_then(arrived));
        }
        if self.seen.get("skipped").copied() != skipped {
            // Nobody said what was to become of it.
            self.model.lost = true;
            return Ok(None);
        }
        let Some(left) = left else { bail!("XDP sent on what is not to be sent on:\n{packet:02x?}") };
        let carried = |event: &&counters::Event| {
            matches!(event, counters::Event::Forward(..) | counters::Event::Reply(..))
        };
        let counted: Vec<_> = self.model.events[events..].iter().filter(carried).copied().collect();
        for sent in &ahead {
            if let Some(difference) = express::difference(&left, sent) {
                bail!("XDP: {difference}\n{packet:02x?}\n{left:02x?}\n{sent:02x?}");
            }
            self.model.events.extend(&counted);
            self.count("carried by XDP");
        }
        Ok(arrived(&left))
    }

    /// A packet goes in and out by the programs of the stack: what leaves.
    fn go(&mut self, program: Program, packet: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(mut outcome) = self.pass(program, packet)? else { return Ok(None) };
        let Some(dst) = model::read(&outcome.packet).dst() else { return Ok(None) };
        if outcome.verdict == Verdict::Drop || dst == world::node(self.plan.v6) {
            return Ok(None);
        }
        if outcome.verdict == Verdict::Pass {
            let Some(left) = self.pass(world::exit(dst), &outcome.packet)? else { return Ok(None) };
            outcome = left;
        }
        self.packets.push(outcome.packet.clone());
        Ok((outcome.verdict != Verdict::Drop).then_some(outcome.packet))
    }

    fn build(&self, ends: &Ends, shape: &Shape) -> Vec<u8> {
        let (v6, protocol) = (self.plan.v6, ends.protocol);
        let known = matches!(protocol, proto::TCP | proto::UDP | proto::SCTP);
        let payload: Vec<u8> = (0..shape.payload).map(|at| at.wrapping_mul(31) ^ shape.payload).collect();
        let flags = match protocol {
            proto::TCP => shape.flags,
            proto::SCTP => sctp_flags(shape.flags, shape.payload),
            _ => 0,
        };
        let packet = Packet::new(if known { protocol } else { proto::UDP }, ends.src, ends.dst, flags);
        let no_checksum = shape.no_checksum && protocol == proto::UDP;
        let mut bytes = Packet {
            eth_src: world::mac(ends.src.ip()),
            payload,
            options: vec![1; if v6 { 0 } else { usize::from(shape.options) * 4 }],
            checksum: if no_checksum { Checksum::Absent } else { Checksum::Complete },
            ..packet
        }
        .bytes();
        if !known {
            bytes[if v6 { 20 } else { 23 }] = protocol;
            let transport = if v6 { 54 } else { 34 + usize::from(shape.options) * 4 };
            if matches!(protocol, proto::ICMP | proto::ICMPV6) && !shape.payload.is_multiple_of(4) {
                bytes[transport] = if v6 { 128 } else { 8 };
            }
        }
        self.adorn(&mut bytes, shape);
        bytes
    }

    /// Makes a packet what its shape says, but for what it is made with.
    fn adorn(&self, bytes: &mut Vec<u8>, shape: &Shape) {
        let v6 = self.plan.v6;
        if let Some((later, id)) = shape.fragment {
            frames::fragment(bytes, v6, later, id);
        }
        if v6 {
            for (kind, units, fourth) in shape.extensions.iter().rev() {
                frames::extend(bytes, *kind, *units, *fourth);
            }
        }
        match shape.damage {
            None => {}
            Some(Damage::Byte(at, byte)) => {
                let at = 14 + usize::from(at);
                if let Some(there) = bytes.get_mut(at) {
                    *there = byte;
                }
            }
            // The kernel runs no program on less than the IP header.
            Some(Damage::Cut(left)) => bytes.truncate(if v6 { 54 } else { 34 } + usize::from(left)),
            Some(Damage::Payload) => *bytes.last_mut().expect("a packet") ^= 1,
        }
    }

    /// Runs a program on a packet and asks the model what was to come of it. `None` when the packet is one of those whose
    /// checksum cannot be told from one that is to be completed: one in 65536.
    fn pass(&mut self, program: Program, packet: &[u8]) -> Result<Option<Outcome>> {
        if model::looks_uncompleted(packet) || packet.len() > MOST {
            self.count("skipped");
            return Ok(None);
        }
        if self.model.waits(program, packet) {
            self.count("ahead of their first fragment");
            return Ok(None);
        }
        if matches!(program, Program::FromPod | Program::FromNet) && self.model.may_give_way(packet) {
            // What was none of our business a moment ago is remembered as such for a second. Real ends take longer to
            // begin a connection where another one was.
            self.datapath.advance_epoch()?;
        }
        let outcome = self.datapath.run(program, packet)?;
        let events = self.model.events.len();
        let expected = self.model.expect(program, packet, &outcome);
        let happened = &self.model.events[events..];
        let described = packet::describe(&outcome.packet);
        self.trace.push(format!(
            "{program:?} {} ({:?}) => {:?}, {described}, {happened:?}",
            packet::describe(packet),
            model::read(packet),
            outcome.verdict
        ));
        if self.model.lost {
            self.count("given up");
            return Ok(None);
        }
        if let Some(difference) = difference(&expected, &outcome) {
            bail!("{program:?}: {difference}\n{packet:02x?}");
        }
        self.tally(packet, &outcome, events);
        Ok(Some(outcome))
    }

    fn count(&mut self, name: &str) {
        *self.seen.entry(name.to_owned()).or_default() += 1;
    }

    fn tally(&mut self, packet: &[u8], outcome: &Outcome, events: usize) {
        use counters::Event;
        let happened = self.model.events[events..].to_vec();
        let carried = happened.iter().any(|event| matches!(event, Event::Forward(..) | Event::Reply(..)));
        self.count(match outcome.verdict {
            _ if carried && matches!(model::read(packet), Read::Later(..)) => "fragments carried",
            _ if carried => "carried",
            Verdict::Drop => "dropped",
            Verdict::Redirect if matches!(model::read(packet), Read::IcmpError(_)) => "errors translated",
            Verdict::Redirect if matches!(model::read(packet), Read::Echo(_)) => "pings answered",
            Verdict::Redirect => "refused",
            Verdict::Back => "sent back",
            Verdict::Pass if outcome.packet == packet => "left alone",
            Verdict::Pass if matches!(model::read(packet), Read::IcmpError(_)) => "errors translated",
            Verdict::Pass => "masqueraded",
        });
        for event in happened {
            match event {
                Event::Opened(..) => self.count("opened"),
                Event::Reselected(_) => self.count("reselected"),
                Event::Reason(reason) => self.count(reason.name()),
                _ => {}
            }
        }
    }

    /// Lets time pass, for what the tables remember.
    fn wait(&mut self, seconds: u32) -> Result<()> {
        // What would be older than the kernel's clock cannot be made so.
        if self.waited + seconds > second() {
            return Ok(());
        }
        self.trace.push(format!("{seconds} seconds pass"));
        self.waited += seconds;
        for ends in self.model.entries.keys() {
            self.datapath.age(ends, seconds)?;
        }
        for (client, service) in self.model.affinities.keys() {
            self.datapath.age_affinity(*client, *service, seconds)?;
        }
        self.datapath.age_fragments(seconds)?;
        // What waited for two seconds is counted when its place is needed, which depends on where it is.
        self.datapath.forget_held()?;
        self.model.waiting.clear();
        self.model.now += seconds;
        // The flow cache asks the tables again every second; here only when it is told to.
        self.datapath.advance_epoch()
    }

    fn evict(&mut self, which: u8) -> Result<()> {
        let mut keys: Vec<Ends> = self.model.entries.keys().copied().collect();
        keys.sort_unstable();
        if keys.is_empty() {
            return Ok(());
        }
        let key = keys[usize::from(which) % keys.len()];
        self.trace.push(format!("evicted: {key:?}"));
        self.model.entries.remove(&key);
        self.datapath.evict(&key)?;
        self.datapath.advance_epoch()
    }

    /// Counters, connections and affinities are the model's.
    fn compare(&mut self, before: &Reading) -> Result<()> {
        let counted = self.datapath.counters(1, 1)?.since(before);
        let expected = counters::sum(self.plan.v6, &self.model.events);
        ensure!(counted == expected, "counters:\nexpected {expected:?}\n counted {counted:?}");
        let there: BTreeMap<Ends, String> =
            self.datapath.entries()?.into_iter().map(|entry| (entry.key, actual(&entry))).collect();
        let wanted: BTreeMap<Ends, String> =
            self.model.entries.iter().map(|(key, entry)| (*key, expectation(entry))).collect();
        if there != wanted {
            let mut text = String::from("connections:");
            for key in wanted.keys().chain(there.keys()).collect::<BTreeSet<_>>() {
                if wanted.get(key) != there.get(key) {
                    let _ = write!(
                        text,
                        "\n{key:?}\n expected {:?}\n is there {:?}",
                        wanted.get(key),
                        there.get(key)
                    );
                }
            }
            bail!("{text}");
        }
        let established = |entry: &&model::Entry| {
            matches!(entry.state, model::State::Established | model::State::Associated)
        };
        let established = self.model.entries.values().filter(established).count() as u64;
        *self.seen.entry("established".to_owned()).or_default() += established;
        for ((client, service), affinity) in &self.model.affinities {
            let there = self.datapath.affinity(*client, *service)?.context("an affinity is missing")?;
            let there = (there.address, there.port, there.backend);
            let wanted = (affinity.endpoint.ip(), affinity.endpoint.port(), affinity.backend);
            ensure!(there == wanted, "affinity of {client} to Service {service}: {there:?}, not {wanted:?}");
        }
        Ok(())
    }
}

/// The entry as both sides can say it. The state of an entry of answers counts for nothing.
fn expectation(entry: &model::Entry) -> String {
    let model::Entry { becomes, service, backend, interface, mac, state, reply, .. } = entry;
    let model::Entry { hairpin, net, masquerade, source, masquerade_port, .. } = entry;
    let state = if *reply { String::new() } else { format!("{state:?}") };
    format!(
        "{becomes:?} {service} {backend} {interface} {mac:?} {state} {reply} {hairpin} {net} {masquerade} {source} {masquerade_port}"
    )
}

fn actual(entry: &entries::Entry) -> String {
    let entries::Entry { becomes, service, backend, interface, mac, state, reply, .. } = entry;
    let entries::Entry { hairpin, net, masquerade, source, masquerade_port, .. } = entry;
    let state = if *reply { String::new() } else { format!("{state:?}") };
    format!(
        "{becomes:?} {service} {backend} {interface} {mac:?} {state} {reply} {hairpin} {net} {masquerade} {source} {masquerade_port}"
    )
}

/// The ends that a packet of a flow arrived with.
fn arrived(packet: &[u8]) -> Option<Ends> {
    match model::read(packet) {
        Read::Flow(seen) => Some(seen.ends()),
        _ => None,
    }
}

/// What the programs did otherwise than they should.
fn difference(expected: &Expected, outcome: &Outcome) -> Option<String> {
    let mut packet = outcome.packet.clone();
    for at in &expected.sums {
        let same =
            |bytes: &[u8]| bytes.get(*at..at + 2).is_some_and(|field| field == [0; 2] || field == [0xff; 2]);
        if same(&packet) && same(&expected.packet) {
            packet[*at..at + 2].copy_from_slice(&expected.packet[*at..at + 2]);
        }
    }
    if expected.verdict != outcome.verdict {
        return Some(format!("expected {:?}, got {:?}", expected.verdict, outcome.verdict));
    }
    packet::difference(&expected.packet, &packet)
}

/// What a packet of SCTP says where one of TCP has these flags.
fn sctp_flags(flags: u8, payload: u8) -> u8 {
    match flags {
        tcp::SYN => sctp::INIT,
        0x12 => sctp::INIT_ACK,
        tcp::ACK => {
            [sctp::LIVE, 0, sctp::COOKIE_ECHO | sctp::LIVE, sctp::COOKIE_ACK][usize::from(payload % 4)]
        }
        0x11 => [sctp::SHUTDOWN, sctp::SHUTDOWN_ACK][usize::from(payload % 2)],
        _ => [sctp::ABORT, sctp::SHUTDOWN_COMPLETE][usize::from(payload % 2)],
    }
}

/// Source and destination of an IP packet.
fn ends(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let octets = |at: usize| packet.get(at..at + 16).and_then(|octets| <[u8; 16]>::try_from(octets).ok());
    match packet.get(12..14)? {
        [0x08, 0x00] => {
            let octets =
                |at: usize| packet.get(at..at + 4).and_then(|octets| <[u8; 4]>::try_from(octets).ok());
            Some((octets(26)?.into(), octets(30)?.into()))
        }
        _ => Some((octets(22)?.into(), octets(38)?.into())),
    }
}

/// The second it is on the clock of the connection tables.
fn second() -> u32 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one `timespec`.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    assert_eq!(failed, 0, "clock_gettime: {}", std::io::Error::last_os_error());
    time.tv_sec as u32
}
