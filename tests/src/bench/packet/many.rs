//! Many Services and many flows.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use lb_common::layout::{Forwarding, FrontendKind, ServiceVerdict};
use lb_common::proto::{self, tcp};

use super::findings::{INSERT, Samples};
use super::once;
use super::reference::Reference;
use crate::bench::Options;
use crate::datapath::packet::Packet;
use crate::datapath::sizes::Sizes;
use crate::datapath::{BackendSpec, Datapath, MASQUERADE_PORTS, Program};

/// Services that new flows go to, each to a random one.
const SERVICES: [u32; 3] = [10, 10_000, 100_000];
/// New flows of a round.
const NEW: u32 = 1000;
/// Flows that are met in turn.
const FLOWS: u32 = 65_536;
/// Tables as large as the agent's defaults; those of Services, for as many as there are.
const SIZES: Sizes = Sizes {
    buckets: 131_072,
    services: 131_072,
    backends: 131_072,
    slots: 131_072,
    flow_sets: 4096,
    connections: 262_144,
};
/// Sets of a flow cache in which all flows have a place.
const ROOMY: u32 = 65_536;

/// The programs with large tables.
pub(super) struct Many {
    services: Option<Services>,
    flows: Vec<Flows>,
}

struct Services {
    datapath: Datapath,
    /// Flows so far.
    flows: u32,
    random: Random,
}

struct Flows {
    name: String,
    datapath: Datapath,
    packets: Vec<Vec<u8>>,
}

impl Many {
    /// Fills the tables.
    pub(super) fn prepare(options: &Options) -> Result<Self> {
        let services = if SERVICES.iter().any(|count| options.wants(&services_name(*count))) {
            Some(Services::prepare()?)
        } else {
            None
        };
        let mut flows = Vec::new();
        for (name, flow_sets) in [
            ("stack from_pod, 65,536 flows in turn", SIZES.flow_sets),
            ("stack from_pod, 65,536 flows in turn, room for all in the flow cache", ROOMY),
        ] {
            if options.wants(name) {
                flows.push(Flows::prepare(name, Sizes { flow_sets, ..SIZES })?);
            }
        }
        Ok(Self { services, flows })
    }

    /// Everything once.
    pub(super) fn measure(&mut self, reference: &Reference, samples: &mut Samples) -> Result<()> {
        if let Some(services) = &mut self.services {
            services.measure(reference, samples)?;
        }
        for flows in &self.flows {
            let base = reference.once()?;
            let time = once(flows.datapath.program(Program::FromPod)?, &flows.packets)?;
            samples.add(&flows.name, time - base.empty, Some((INSERT, base.reference)));
        }
        Ok(())
    }
}

fn load(sizes: &Sizes) -> Result<Datapath> {
    Datapath::load_sized(Forwarding::Stack, MASQUERADE_PORTS, false, sizes)
}

fn address(network: u8, number: u32) -> IpAddr {
    let [_, high, middle, low] = number.to_be_bytes();
    Ipv4Addr::new(10, network + high, middle, low).into()
}

fn services_name(count: u32) -> String {
    let (thousands, rest) = (count / 1000, count % 1000);
    let count = if thousands == 0 { rest.to_string() } else { format!("{thousands},{rest:03}") };
    format!("stack from_pod new flow, {count} Services")
}

impl Services {
    fn prepare() -> Result<Self> {
        let mut datapath = load(&SIZES)?;
        for number in 0..SERVICES[SERVICES.len() - 1] {
            let service = datapath.empty_service();
            let endpoint = SocketAddr::new(address(100, number), 8080);
            let backend = datapath.backend(service, &BackendSpec::serving(endpoint))?;
            datapath.publish(service, ServiceVerdict::Random, &[backend])?;
            let vip = SocketAddr::new(address(96, number), 80);
            datapath
                .frontend(vip, proto::TCP, service, FrontendKind::ClusterIp)
                .with_context(|| format!("Service {number}"))?;
        }
        Ok(Self { datapath, flows: 0, random: Random(1) })
    }

    fn measure(&mut self, reference: &Reference, samples: &mut Samples) -> Result<()> {
        let mut few = None;
        for count in SERVICES {
            let packets: Vec<_> = (0..NEW).map(|_| self.begins(count)).collect();
            let base = reference.once()?;
            let time = once(self.datapath.program(Program::FromPod)?, &packets)? - base.empty;
            let few = *few.get_or_insert(time);
            samples.add(&services_name(count), time, Some((&services_name(SERVICES[0]), few)));
        }
        Ok(())
    }

    /// First packet of a flow that nobody saw before, to a random one of so many Services.
    fn begins(&mut self, count: u32) -> Vec<u8> {
        self.flows += 1;
        let client =
            SocketAddr::new(address(110, self.flows / 20_000), 20_000 + (self.flows % 20_000) as u16);
        let vip = SocketAddr::new(address(96, self.random.below(count)), 80);
        Packet::new(proto::TCP, client, vip, tcp::SYN).bytes()
    }
}

impl Flows {
    fn prepare(name: &str, sizes: Sizes) -> Result<Self> {
        let mut datapath = load(&sizes)?;
        let vip = SocketAddr::new(address(96, 1), 53);
        let endpoint = BackendSpec::serving(SocketAddr::new(address(100, 1), 53));
        datapath.service(vip, proto::UDP, ServiceVerdict::Random, &[endpoint])?;
        let packet = |flow: u32| {
            let client = SocketAddr::new(address(110, flow / 1024), 20_000 + (flow % 1024) as u16);
            Packet::new(proto::UDP, client, vip, 0).bytes()
        };
        let mut packets: Vec<_> = (0..FLOWS).map(packet).collect();
        let mut random = Random(2);
        for at in (1..FLOWS).rev() {
            packets.swap(at as usize, random.below(at + 1) as usize);
        }
        for packet in &packets {
            datapath.run(Program::FromPod, packet)?;
        }
        Ok(Self { name: name.to_owned(), datapath, packets })
    }
}

/// Numbers that look random, the same in every run (xorshift64*).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, limit: u32) -> u32 {
        (((self.next() >> 32) * u64::from(limit)) >> 32) as u32
    }
}
