//! Packet tables: steps of one packet each, with everything that is to come of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;

use anyhow::{Context as _, Result, ensure};
use lb_common::layout::{BackendFlags, Forwarding, ServiceVerdict};
use lb_common::proto::{self, tcp};
use lb_common::reason::Reason;
use lb_common::sctp;

use super::counters::{self, Event};
use super::entries::Ends;
use super::packet::{self, Mac, Packet};
use super::{BackendSpec, Datapath, Program, Verdict, sample};

/// Programs of both modes that no test uses at the moment: loading takes half a second.
static IDLE: Mutex<Vec<(Forwarding, Datapath)>> = Mutex::new(Vec::new());

/// MAC address of the backends whose way is known.
pub const BACKEND_MAC: Mac = [2, 0, 0, 0, 1, 1];

/// One packet and what is to come of it.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it is about.
    pub name: &'static str,
    /// The program that gets it.
    pub program: Program,
    /// The packet.
    pub packet: Vec<u8>,
    /// The verdict.
    pub verdict: Verdict,
    /// The packet afterwards.
    pub becomes: Vec<u8>,
    /// Everything that is counted.
    pub events: Vec<Event>,
    /// Segments of a super-packet, 0 for a packet like any other.
    pub segments: u32,
    /// False for packets whose checksums are not to be verified: not completed, or of no protocol we know.
    pub verified: bool,
}

impl Step {
    /// A packet that is none of our business.
    pub fn untouched(name: &'static str, program: Program, packet: &[u8]) -> Self {
        let packet = packet.to_vec();
        let becomes = packet.clone();
        Self {
            name,
            program,
            packet,
            verdict: Verdict::Pass,
            becomes,
            events: Vec::new(),
            segments: 0,
            verified: false,
        }
    }

    /// A packet of a pod that is dropped for a reason, by a Service where there is one.
    pub fn dropped(name: &'static str, packet: &[u8], reason: Reason, service: Option<u32>) -> Self {
        let mut events = vec![Event::Reason(reason)];
        events.extend(service.map(Event::Dropped));
        Self { verdict: Verdict::Drop, events, ..Self::untouched(name, Program::FromPod, packet) }
    }

    /// A packet of a pod that is refused for a reason, by a Service where there is one.
    pub fn refused(name: &'static str, packet: &Packet, reason: Reason, service: Option<u32>) -> Self {
        let mut events = vec![Event::Reason(reason)];
        events.extend(service.map(Event::Refused));
        Self {
            name,
            program: Program::FromPod,
            packet: packet.bytes(),
            verdict: Verdict::Redirect,
            becomes: packet.refusal(),
            events,
            segments: 0,
            verified: true,
        }
    }

    /// A packet that becomes another one.
    pub fn carried(
        name: &'static str,
        program: Program,
        packet: &Packet,
        verdict: Verdict,
        becomes: &Packet,
        event: Event,
    ) -> Self {
        let verified = packet.checksum == packet::Checksum::Complete;
        let (packet, becomes) = (packet.bytes(), becomes.bytes());
        Self { name, program, packet, verdict, becomes, events: vec![event], segments: 0, verified }
    }

    /// The same step with a super-packet of that many segments, each counted as the packet it will be.
    #[must_use]
    pub fn in_segments(mut self, count: u32) -> Self {
        let segments = self.events.iter().filter_map(|event| match *event {
            Event::Forward(service, backend, _) => Some(Event::Segments(service, backend, false, count - 1)),
            Event::Reply(service, backend, _) => Some(Event::Segments(service, backend, true, count - 1)),
            _ => None,
        });
        self.events.extend(segments.collect::<Vec<_>>());
        Self { segments: count, ..self }
    }

    /// The same step at another program.
    #[must_use]
    pub fn at(self, program: Program) -> Self {
        Self { program, ..self }
    }

    /// The same step, with one more thing counted.
    #[must_use]
    pub fn and(mut self, event: Event) -> Self {
        self.events.push(event);
        self
    }
}

/// A Service with its only backend, and a client of it.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    /// The client's address and port.
    pub client: SocketAddr,
    /// The Service's address and port.
    pub vip: SocketAddr,
    /// The endpoint's address and port.
    pub endpoint: SocketAddr,
    /// Service index.
    pub service: u32,
    /// Backend index.
    pub backend: u32,
    /// True when the way to the endpoint is known and the programs use it.
    pub direct: bool,
    /// True when replies from the endpoint's device go straight to the client.
    pub redirects: bool,
}

impl Flow {
    /// A packet of the client.
    pub fn request(&self, flags: u8) -> Packet {
        Packet::new(self.protocol, self.client, self.vip, flags)
    }

    /// What becomes of a packet of the client.
    pub fn translated(&self, request: &Packet) -> Packet {
        let packet = request.between(request.src, self.endpoint);
        if self.direct { packet.to_mac(BACKEND_MAC) } else { packet }
    }

    /// A packet of the endpoint.
    pub fn response(&self, flags: u8) -> Packet {
        let packet = Packet::new(self.protocol, self.endpoint, self.client, flags);
        Packet { eth_src: [2, 0, 0, 0, 0, 9], eth_dst: [2, 0, 0, 0, 0, 8], ..packet }
    }

    /// Key of the entry of the client's packets.
    pub fn key(&self) -> Ends {
        Ends { src: self.client, dst: self.vip, protocol: self.protocol }
    }

    /// Key of the entry of the endpoint's packets.
    pub fn reply_key(&self) -> Ends {
        Ends { src: self.endpoint, dst: self.client, protocol: self.protocol }
    }

    /// The client's packet reaches the endpoint.
    pub fn goes(&self, name: &'static str, request: &Packet) -> Step {
        let verdict = if self.direct { Verdict::Redirect } else { Verdict::Pass };
        let event = Event::Forward(self.service, self.backend, request.ip_len());
        Step::carried(name, Program::FromPod, request, verdict, &self.translated(request), event)
    }

    /// The client's packet reaches the endpoint and opens a connection.
    pub fn opens(&self, name: &'static str, request: &Packet) -> Step {
        self.goes(name, request).and(Event::Opened(self.service, self.backend))
    }

    /// The client's packet chooses again, and finds this endpoint.
    pub fn reopens(&self, name: &'static str, request: &Packet) -> Step {
        self.opens(name, request).and(Event::Reselected(self.service))
    }

    /// The endpoint's packet is turned back at the client's device.
    pub fn returns(&self, name: &'static str, response: &Packet) -> Step {
        let becomes = response.between(self.vip, self.client);
        let event = Event::Reply(self.service, self.backend, response.ip_len());
        Step::carried(name, Program::ToPod, response, Verdict::Pass, &becomes, event)
    }

    /// The endpoint's packet at its own device: left alone, or taken straight to a client on `lo`.
    pub fn returns_early(&self, name: &'static str, response: &Packet) -> Step {
        if !self.redirects {
            return Step::untouched(name, Program::FromPod, &response.bytes());
        }
        let client_mac = self.request(0).eth_src;
        let becomes = response.between(self.vip, self.client).to_mac(client_mac);
        let event = Event::Reply(self.service, self.backend, response.ip_len());
        Step::carried(name, Program::FromPod, response, Verdict::Redirect, &becomes, event)
    }

    /// From the first packet to an established flow (UDP: request and response).
    pub fn handshake(&self) -> Vec<Step> {
        if self.protocol == proto::SCTP {
            return vec![
                self.opens("INIT", &self.request(sctp::INIT)),
                self.returns("INIT ACK", &self.response(sctp::INIT_ACK)),
                self.goes("COOKIE ECHO", &self.request(sctp::COOKIE_ECHO)),
                self.returns("COOKIE ACK", &self.response(sctp::COOKIE_ACK)),
            ];
        }
        if self.protocol == proto::UDP {
            let (request, response) = (self.request(0), self.response(0));
            return vec![self.opens("request", &request), self.returns("response", &response)];
        }
        vec![
            self.opens("SYN", &self.request(tcp::SYN)),
            self.returns("SYN and ACK", &self.response(tcp::SYN | tcp::ACK)),
            self.goes("ACK", &self.request(tcp::ACK)),
        ]
    }
}

/// Loaded programs, and the circumstances in which a table is tried.
pub struct World {
    /// The programs.
    pub datapath: Datapath,
    /// Their forwarding mode.
    pub forwarding: Forwarding,
    /// True for IPv6.
    pub v6: bool,
    /// IP protocol number: TCP, UDP or SCTP.
    pub protocol: u8,
    subnet: u8,
    hosts: u8,
    /// First Service and backend of this case.
    rows: (u32, u32),
}

impl World {
    /// A world of its own in loaded programs.
    pub fn over(mut datapath: Datapath, forwarding: Forwarding, v6: bool, protocol: u8) -> Self {
        let subnet = datapath.subnet();
        let rows = (datapath.services, datapath.backends);
        Self { datapath, forwarding, v6, protocol, subnet, hosts: 0, rows }
    }

    /// True for TCP.
    pub fn is_tcp(&self) -> bool {
        self.protocol == proto::TCP
    }

    /// Flags of a packet that begins a flow.
    pub fn first(&self) -> u8 {
        match self.protocol {
            proto::TCP => tcp::SYN,
            proto::SCTP => sctp::INIT,
            _ => 0,
        }
    }

    /// Flags of a packet in the middle of a flow.
    pub fn middle(&self) -> u8 {
        match self.protocol {
            proto::TCP => tcp::ACK,
            proto::SCTP => sctp::LIVE,
            _ => 0,
        }
    }

    /// An address that nobody else has.
    pub fn address(&mut self) -> IpAddr {
        self.hosts += 1;
        self.host(self.hosts)
    }

    /// The address of that number in the network of this case.
    pub fn host(&self, number: u8) -> IpAddr {
        if self.v6 {
            Ipv6Addr::new(0xfd00, self.subnet.into(), 0, 0x1234, 0, 0x89ab, 0, number.into()).into()
        } else {
            Ipv4Addr::new(10, self.subnet, 77, number).into()
        }
    }

    /// A serving backend at a new address; in mode `redirect` its way is known.
    pub fn endpoint(&mut self, port: u16) -> BackendSpec {
        let endpoint = SocketAddr::new(self.address(), port);
        let flags = BackendFlags::SERVING | BackendFlags::LOCAL;
        BackendSpec { endpoint, flags, interface: 1, mac: BACKEND_MAC }
    }

    /// A Service with one endpoint, and a client.
    ///
    /// # Errors
    /// When a table is full.
    pub fn flow(&mut self) -> Result<Flow> {
        let backend = self.endpoint(8080);
        self.flow_to(&backend)
    }

    /// A Service with that endpoint alone, and a client.
    ///
    /// # Errors
    /// When a table is full.
    pub fn flow_to(&mut self, backend: &BackendSpec) -> Result<Flow> {
        let client = SocketAddr::new(self.address(), 40_000);
        let vip = SocketAddr::new(self.address(), 80);
        let service = self.datapath.service(vip, self.protocol, ServiceVerdict::Random, &[*backend])?;
        let redirects = self.forwarding == Forwarding::Redirect;
        Ok(Flow {
            protocol: self.protocol,
            client,
            vip,
            endpoint: backend.endpoint,
            service,
            backend: self.datapath.backends - 1,
            direct: redirects && backend.interface != 0,
            redirects,
        })
    }

    /// Runs a step and compares everything that comes of it.
    ///
    /// # Errors
    /// What differs.
    pub fn step(&mut self, step: &Step) -> Result<()> {
        let (service, backend) = self.rows;
        let before = self.datapath.counters(service, backend)?;
        let outcome = match step.segments {
            0 => self.datapath.run(step.program, &step.packet),
            count => self.datapath.run_segments(step.program, &step.packet, count, 100),
        }
        .context(step.name)?;
        let counted = self.datapath.counters(service, backend)?.since(&before);
        let expected = counters::sum(self.v6, &step.events);
        if let Some(difference) = packet::difference(&step.becomes, &outcome.packet) {
            anyhow::bail!("{}: {:?}, counted {counted:?}\n{difference}", step.name, outcome.verdict);
        }
        ensure!(
            outcome.verdict == step.verdict,
            "{}: expected {:?}, got {:?}",
            step.name,
            step.verdict,
            outcome.verdict
        );
        ensure!(counted == expected, "{}:\nexpected {expected:?}\n counted {counted:?}", step.name);
        if step.verified {
            packet::verify(&outcome.packet).context(step.name)?;
            let of = || format!("{} {:?} {} {}", step.name, step.program, self.v6, self.protocol);
            sample::note(of, &step.packet, &outcome.packet)?;
        }
        Ok(())
    }

    /// Runs steps in their order.
    ///
    /// # Errors
    /// What differs, and where.
    pub fn steps(&mut self, steps: &[Step]) -> Result<()> {
        steps.iter().enumerate().try_for_each(|(number, step)| {
            self.step(step)
                .with_context(|| format!("step {} ({})", number + 1, packet::describe(&step.packet)))
        })
    }

    /// Runs a step three times: by the tables or the flow cache, by the flow cache, and by the tables for certain.
    ///
    /// # Errors
    /// What differs.
    pub fn always(&mut self, step: &Step) -> Result<()> {
        self.step(step)?;
        self.step(step).context("again")?;
        self.datapath.advance_epoch()?;
        self.step(step).context("by the tables")
    }
}

/// Tries a table in every circumstance: both forwarding modes, both families, TCP and UDP.
///
/// # Panics
/// When it does not hold.
pub fn everywhere(case: impl Fn(&mut World) -> Result<()>) {
    everywhere_with(&[proto::TCP, proto::UDP], case);
}

/// As [`everywhere`], with other protocols.
///
/// # Panics
/// When it does not hold.
pub fn everywhere_with(protocols: &[u8], case: impl Fn(&mut World) -> Result<()>) {
    super::pin();
    for forwarding in [Forwarding::Stack, Forwarding::Redirect] {
        let mut datapath = take(forwarding);
        for (v6, protocol) in protocols.iter().flat_map(|protocol| [(false, *protocol), (true, *protocol)]) {
            let before = datapath.counters(1, 1).expect("counters");
            let mut world = World::over(datapath, forwarding, v6, protocol);
            if let Err(error) = case(&mut world) {
                let transport = match protocol {
                    proto::TCP => "TCP",
                    proto::UDP => "UDP",
                    _ => "SCTP",
                };
                panic!("{forwarding:?}, IPv{}, {transport}: {error:?}", if v6 { 6 } else { 4 });
            }
            datapath = world.datapath;
            let after = datapath.counters(1, 1).expect("counters");
            assert!(after.has_rows_of(&before), "counted for Services of another case");
        }
        IDLE.lock().expect("no panic while locked").push((forwarding, datapath));
    }
}

/// Networks that a case takes at most: one for each family and protocol it runs in, of which there are three.
const NETWORKS: u8 = 6;
/// Service ranges that a case takes at most: as many, because its datapath may be another's afterwards.
const RANGES: u32 = 6;

fn take(forwarding: Forwarding) -> Datapath {
    let mut idle = IDLE.lock().expect("no panic while locked");
    // One that ran out of networks or Service ranges for another case's worlds ends here.
    idle.retain(|(_, datapath)| datapath.has_subnets(NETWORKS) && datapath.has_ranges(RANGES));
    let found = idle.iter().position(|(mode, _)| *mode == forwarding);
    let datapath = found.map(|at| idle.swap_remove(at).1);
    drop(idle);
    datapath.unwrap_or_else(|| Datapath::load(forwarding).expect("the programs load"))
}
