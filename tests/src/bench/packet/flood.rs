//! A flood of new flows to one Service, while flows to another one live.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_common::layout::{Forwarding, FrontendKind, ServiceVerdict};
use lb_common::proto::{self, tcp};

use super::many::Random;
use crate::bench::Options;
use crate::bench::report::Row;
use crate::datapath::packet::Packet;
use crate::datapath::{BackendSpec, CONNECTIONS, Datapath, Program};

/// Flows that live, to one of [`ENDPOINTS`] endpoints each.
const LIVE: u32 = 10_000;
const ENDPOINTS: u8 = 4;
/// New flows of the flood, and without much time.
const FLOOD: u32 = 1_000_000;
const QUICK: u32 = 200_000;
/// New flows between two counts of the agent.
const COUNTED: u32 = 20_000;

/// Where destination address and port stand in a frame without IP options, and the source's.
const DESTINATION: (usize, usize) = (30, 36);
const SOURCE: (usize, usize) = (26, 34);

/// Two rows: how many flows another endpoint got, or none, with the Service as it was and with an endpoint more.
pub(super) fn run(options: &Options) -> Result<Vec<Row>> {
    let flood = if options.quick { QUICK } else { FLOOD };
    let names = ["flows of 10,000 broken by a flood", "flows of 10,000 broken by a flood and a new endpoint"];
    if !names.iter().any(|name| options.wants(name)) {
        return Ok(Vec::new());
    }
    let mut site = Site::prepare()?;
    site.flood(flood)?;
    let unchanged = site.broken()?;
    site.add_endpoint()?;
    let added = site.broken()?;
    let note = format!("{flood} new flows; the connection table has {CONNECTIONS} entries, two to a flow");
    let row = |name: &str, broken: u32, goal| Row::new(name, "flows", &[broken.into()]).goal(goal);
    Ok(vec![row(names[0], unchanged, "D12/unchanged").note(note), row(names[1], added, "D12/added")])
}

struct Site {
    datapath: Datapath,
    service: u32,
    backends: Vec<u32>,
    /// The client's packet in the middle of each flow, and the endpoint's address and port in what it becomes.
    flows: Vec<(Vec<u8>, [u8; 6])>,
    attacked: SocketAddr,
}

fn address(network: u8, number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, network, high, low).into()
}

/// Address and port at some place in a frame.
fn end(frame: &[u8], (address, port): (usize, usize)) -> [u8; 6] {
    let mut end = [0; 6];
    end[..4].copy_from_slice(&frame[address..address + 4]);
    end[4..].copy_from_slice(&frame[port..port + 2]);
    end
}

impl Site {
    fn prepare() -> Result<Self> {
        let mut datapath = Datapath::load(Forwarding::Stack)?;
        let (vip, attacked) = (SocketAddr::new(address(96, 1), 80), SocketAddr::new(address(96, 2), 80));
        let mut services = Vec::new();
        for (frontend, network) in [(vip, 100), (attacked, 101)] {
            let service = datapath.empty_service();
            let endpoints =
                (1..=ENDPOINTS).map(|number| SocketAddr::new(address(network, number.into()), 8080));
            let backends = endpoints
                .map(|endpoint| datapath.backend(service, &BackendSpec::serving(endpoint)))
                .collect::<Result<Vec<_>>>()?;
            datapath.publish(service, ServiceVerdict::Random, &backends)?;
            datapath.frontend(frontend, proto::TCP, service, FrontendKind::ClusterIp)?;
            services.push((service, backends));
        }
        let (service, backends) = services.swap_remove(0);
        let flows = Vec::with_capacity(LIVE as usize);
        let mut site = Self { datapath, service, backends, flows, attacked };
        for flow in 0..LIVE {
            let client = SocketAddr::new(address(110, (flow / 1000) as u16), 20_000 + (flow % 1000) as u16);
            site.open(client, vip).with_context(|| format!("flow {flow}"))?;
        }
        Ok(site)
    }

    /// A TCP connection from its SYN to where both ends have it.
    fn open(&mut self, client: SocketAddr, vip: SocketAddr) -> Result<()> {
        let packet = |flags| Packet::new(proto::TCP, client, vip, flags);
        let first = self.datapath.run(Program::FromPod, &packet(tcp::SYN).bytes())?;
        let chosen = end(&first.packet, DESTINATION);
        let [a, b, c, d, high, low] = chosen;
        let endpoint = SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([high, low]));
        let answer = Packet::new(proto::TCP, endpoint, client, tcp::SYN | tcp::ACK).bytes();
        let answer = self.datapath.run(Program::ToPod, &answer)?;
        ensure!(
            end(&answer.packet, SOURCE) == end(&packet(tcp::SYN).bytes(), DESTINATION),
            "the answer of {endpoint} does not come from the Service"
        );
        let middle = packet(tcp::ACK).bytes();
        self.datapath.run(Program::FromPod, &middle)?;
        self.flows.push((middle, chosen));
        Ok(())
    }

    /// New flows from everywhere to the other Service.
    fn flood(&mut self, count: u32) -> Result<()> {
        let mut random = Random(3);
        let mut frame =
            Packet::new(proto::TCP, SocketAddr::new(address(120, 1), 1), self.attacked, tcp::SYN).bytes();
        for number in 0..count {
            if number % COUNTED == 0 {
                self.datapath.counted(0, 2)?;
            }
            // The checksum is the endpoint's affair.
            let source = random.next().to_be_bytes();
            frame[SOURCE.0 + 1..SOURCE.0 + 4].copy_from_slice(&source[..3]);
            frame[SOURCE.1..SOURCE.1 + 2].copy_from_slice(&source[3..5]);
            frame[SOURCE.0] = 11;
            self.datapath.run(Program::FromPod, &frame)?;
        }
        Ok(())
    }

    /// Publishes an endpoint more.
    fn add_endpoint(&mut self) -> Result<()> {
        let endpoint = SocketAddr::new(address(100, u16::from(ENDPOINTS) + 1), 8080);
        let backend = self.datapath.backend(self.service, &BackendSpec::serving(endpoint))?;
        self.backends.push(backend);
        self.datapath.publish(self.service, ServiceVerdict::Random, &self.backends)?;
        self.datapath.advance_epoch()
    }

    /// Flows whose next packet goes elsewhere than their first one.
    fn broken(&self) -> Result<u32> {
        let mut broken = 0;
        for (packet, chosen) in &self.flows {
            let outcome = self.datapath.run(Program::FromPod, packet)?;
            broken += u32::from(end(&outcome.packet, DESTINATION) != *chosen);
        }
        Ok(broken)
    }
}
