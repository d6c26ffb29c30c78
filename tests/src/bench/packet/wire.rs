//! Packets of clients outside at the XDP program, to an endpoint beyond the network, masqueraded, and its answers.

use anyhow::{Context as _, Result, ensure};
use lb_common::layout::{Client, Forwarding, FrontendKind};
use lb_common::proto;

use super::REPEAT;
use super::findings::{LOOKUPS, Samples};
use super::reference::Reference;
use crate::bench::Options;
use crate::datapath::case::World;
use crate::datapath::journey::{Journey, Site};
use crate::datapath::packet::Packet;
use crate::datapath::wire::{Device, Wires};
use crate::datapath::{Datapath, Program, Verdict};

/// Seconds that make a flow old enough for the stack not to be shown its packets.
const OLD: u32 = 10;
/// Bytes behind the headers, so that a frame has as many as are put back.
const PAYLOAD: [u8; 64] = [0; 64];

/// The program in a node of its own, and its packets.
pub(super) struct Wire {
    prepared: Option<(Datapath, Wires)>,
    cases: Vec<Case>,
}

struct Case {
    name: String,
    frame: Vec<u8>,
    /// What the program returns.
    action: u32,
}

impl Wire {
    /// Lets flows stand, and makes sure of what becomes of their packets.
    pub(super) fn prepare(reference: &mut Reference, options: &Options) -> Result<Self> {
        let mut cases = Vec::new();
        if !wanted(options) {
            return Ok(Self { prepared: None, cases });
        }
        let wires = Wires::enter()?;
        let mut datapath = Datapath::load(Forwarding::Stack)?;
        datapath.take_frames(&Device::ALL)?;
        for (v6, protocol) in FLOWS {
            let mut world = World::over(datapath, Forwarding::Stack, v6, protocol);
            flow(&mut world, &mut cases).with_context(|| label(v6, protocol))?;
            datapath = world.datapath;
        }
        cases.retain(|case| options.wants(&case.name));
        for case in &cases {
            let (_, action) = reference.wire(Some(datapath.wire()?.fd()?), &case.frame, 3)?;
            ensure!(action == case.action, "{}: returns {action}, not {}", case.name, case.action);
        }
        Ok(Self { prepared: Some((datapath, wires)), cases })
    }

    /// Every case once.
    pub(super) fn measure(&self, reference: &mut Reference, samples: &mut Samples) -> Result<()> {
        let Some((datapath, _)) = &self.prepared else { return Ok(()) };
        for case in &self.cases {
            let base = reference.repeated(REPEAT)?;
            let (empty, _) = reference.wire(None, &case.frame, REPEAT)?;
            let (time, action) = reference.wire(Some(datapath.wire()?.fd()?), &case.frame, REPEAT)?;
            ensure!(action == case.action, "{}: returned {action} in the end", case.name);
            samples.add(&case.name, time - empty, Some((LOOKUPS, base.reference)));
        }
        Ok(())
    }
}

const FLOWS: [(bool, u8); 4] =
    [(false, proto::TCP), (false, proto::UDP), (true, proto::TCP), (true, proto::UDP)];

fn label(v6: bool, protocol: u8) -> String {
    let transport = if protocol == proto::TCP { "tcp" } else { "udp" };
    format!("xdp ipv{} {transport}", if v6 { 6 } else { 4 })
}

const WHAT: [&str; 3] = ["node port request", "node port response", "foreign"];

fn wanted(options: &Options) -> bool {
    let names = || {
        FLOWS
            .into_iter()
            .flat_map(|(v6, protocol)| WHAT.map(|what| format!("{} {what}", label(v6, protocol))))
    };
    names().any(|name| options.wants(&name))
}

fn flow(world: &mut World, cases: &mut Vec<Case>) -> Result<()> {
    let journey = world.journey(FrontendKind::NodePort, Client::Outside, Site::Beyond, 0)?;
    ensure!(journey.is_masqueraded());
    world.steps(&journey.handshake())?;
    if !world.is_tcp() {
        // The endpoint's answer is what makes a flow of it.
        world.steps(&journey.request(0))?;
    }
    for key in journey.first_pair().into_iter().chain(journey.second_pair()) {
        world.datapath.age(&key, OLD)?;
    }
    let middle = world.middle();
    let prepared = |packet: Packet| packet.with_payload(&PAYLOAD).to_mac(Device::One.mac());
    let (request, response) = (prepared(journey.flow.request(middle)), prepared(journey.response(middle)));
    let stranger = Packet::new(world.protocol, journey.flow.client, (world.address(), 81).into(), middle);
    let stranger = prepared(stranger);
    let becomes = [
        (Verdict::Back, leaves(&journey, &request)),
        (Verdict::Back, returns(&journey, &response)),
        (Verdict::Pass, stranger.bytes()),
    ];
    for ((packet, what), (verdict, becomes)) in [request, response, stranger].iter().zip(WHAT).zip(becomes) {
        let frame = packet.bytes();
        for _ in 0..2 {
            let outcome = world.datapath.run(Program::FromWire, &frame)?;
            ensure!(outcome.verdict == verdict && outcome.packet == becomes, "{what}: {:?}", outcome.verdict);
        }
        // `XDP_TX` and `XDP_PASS`, include/uapi/linux/bpf.h.
        let action = if verdict == Verdict::Back { 3 } else { 2 };
        let name = format!("{} {what}", label(world.v6, world.protocol));
        cases.push(Case { name, frame, action });
    }
    Ok(())
}

/// The client's packet on its way to the endpoint.
fn leaves(journey: &Journey, request: &Packet) -> Vec<u8> {
    let packet = request.between(journey.source, journey.flow.endpoint);
    packet.forwarded(Device::One.mac(), Device::One.far_mac()).bytes()
}

/// The endpoint's packet on its way to the client.
fn returns(journey: &Journey, response: &Packet) -> Vec<u8> {
    let packet = response.between(journey.flow.vip, journey.flow.client);
    packet.forwarded(Device::One.mac(), Device::One.far_mac()).bytes()
}
