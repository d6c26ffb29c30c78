//! Journeys of clients outside, through the XDP program.

use anyhow::{Context as _, Result, ensure};
use lb_common::layout::{BackendFlags, Client, Forwarding, FrontendKind};
use lb_common::proto::tcp;

use super::case::{Step, World, everywhere};
use super::counters::Event;
use super::entries::Ends;
use super::journey::{Journey, Site};
use super::packet::Packet;
use super::wire::{Device, Wires};
use super::{BackendSpec, Program, Verdict};

/// Seconds that make a flow old enough for the stack not to be shown its packets.
pub const OLD: u32 = 10;

/// Tries a table in every circumstance, in a node of its own whose devices take frames.
///
/// # Panics
/// When it does not hold.
pub fn on_wires(case: impl Fn(&mut World, &Wires) -> Result<()>) {
    let wires = Wires::enter().expect("a namespace");
    everywhere(|world| {
        world.datapath.take_frames(&Device::ALL)?;
        world.datapath.comes_by(Device::One);
        case(world, &wires)
    });
}

/// Where the endpoint is, and by which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Back out of the device that the client's packets come by.
    Back,
    /// Out of another one.
    Forward,
    /// A pod of this node.
    Pod,
}

impl Way {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Back, Self::Forward, Self::Pod];

    /// The device towards the endpoint.
    pub fn device(self) -> Device {
        match self {
            Self::Back => Device::One,
            Self::Forward => Device::Two,
            Self::Pod => Device::Pod,
        }
    }

    /// The verdict on packets that are carried there.
    pub fn verdict(self) -> Verdict {
        if self == Self::Back { Verdict::Back } else { Verdict::Redirect }
    }
}

/// A journey of a client outside, and what the XDP program is to make of it.
#[derive(Clone, Copy, Debug)]
pub struct Trip {
    /// The journey.
    pub journey: Journey,
    /// Where the endpoint is.
    pub way: Way,
}

impl Trip {
    /// A Service with an endpoint in that place, and a client outside.
    ///
    /// # Errors
    /// When a table is full, or the kernel refuses the route.
    pub fn new(world: &mut World, wires: &Wires, kind: FrontendKind, way: Way, flags: u32) -> Result<Self> {
        let site = if way == Way::Pod { Site::Here } else { Site::Beyond };
        let journey = world.journey(kind, Client::Outside, site, flags)?;
        let trip = Self { journey, way };
        if way == Way::Pod {
            trip.place(world, BackendFlags::SERVING | BackendFlags::LOCAL, Device::Pod.index())?;
        }
        if way != Way::Back {
            wires.lead(journey.flow.endpoint.ip(), way.device())?;
        }
        Ok(trip)
    }

    /// Writes the backend's row anew.
    ///
    /// # Errors
    /// When the kernel refuses the store.
    pub fn place(&self, world: &mut World, flags: u16, interface: u32) -> Result<()> {
        let flow = &self.journey.flow;
        let mac = if interface == 0 { [0; 6] } else { Device::Pod.far_mac() };
        let spec = BackendSpec { endpoint: flow.endpoint, flags, interface, mac };
        world.datapath.set_backend(flow.backend, flow.service, &spec)?;
        world.datapath.advance_epoch()
    }

    /// The first packets, by the programs of the stack. The flow is old then.
    ///
    /// # Errors
    /// What differs.
    pub fn stands(&self, world: &mut World) -> Result<()> {
        world.steps(&self.journey.handshake())?;
        if !world.is_tcp() {
            // The endpoint's answer is what makes a flow of it.
            world.steps(&self.journey.request(0))?;
        }
        self.grow_old(world, OLD)
    }

    /// Makes every entry older by that many seconds.
    ///
    /// # Errors
    /// When there is no such entry.
    pub fn grow_old(&self, world: &mut World, seconds: u32) -> Result<()> {
        let keys = self.journey.first_pair().into_iter().chain(self.second_pair());
        for key in keys {
            world.datapath.age(&key, seconds)?;
        }
        Ok(())
    }

    /// Makes every entry's flow as old as that, whenever the entry was made.
    ///
    /// # Errors
    /// When there is no such entry.
    pub fn settle(&self, world: &mut World, seconds: u32) -> Result<()> {
        let keys = self.journey.first_pair().into_iter().chain(self.second_pair());
        for key in keys {
            world.datapath.lengthen(&key, seconds)?;
        }
        Ok(())
    }

    /// Keys of the second pair, where there is one.
    pub fn second_pair(&self) -> Vec<Ends> {
        if self.journey.is_masqueraded() { self.journey.second_pair().to_vec() } else { Vec::new() }
    }

    /// A packet of the client.
    pub fn request(&self, world: &World) -> Packet {
        self.journey.flow.request(world.middle()).to_mac(Device::One.mac())
    }

    /// What the endpoint sees of it.
    pub fn arrives(&self, request: &Packet) -> Packet {
        let device = self.way.device();
        let packet = request.between(self.journey.source, self.journey.flow.endpoint);
        packet.forwarded(device.mac(), device.far_mac())
    }

    /// The client's packet is carried.
    pub fn goes(&self, name: &'static str, request: &Packet) -> Step {
        let flow = &self.journey.flow;
        let event = Event::Forward(flow.service, flow.backend, request.ip_len());
        let becomes = self.arrives(request);
        Step::carried(name, Program::FromWire, request, self.way.verdict(), &becomes, event)
    }

    /// A packet of an endpoint beyond the network, which comes by the device that leads there.
    pub fn response(&self, world: &World) -> Packet {
        self.journey.response(world.middle()).to_mac(self.way.device().mac())
    }

    /// The endpoint's packet is carried to the client.
    pub fn returns(&self, name: &'static str, response: &Packet) -> Step {
        let flow = &self.journey.flow;
        let becomes =
            response.between(flow.vip, flow.client).forwarded(Device::One.mac(), Device::One.far_mac());
        let event = Event::Reply(flow.service, flow.backend, response.ip_len());
        Step::carried(name, Program::FromWire, response, self.way.verdict(), &becomes, event)
    }

    /// True when the program is to carry the client's packets.
    pub fn is_served(&self, world: &World) -> bool {
        self.way != Way::Pod || world.forwarding == Forwarding::Redirect
    }

    /// The last seconds at which the entries' flow was seen.
    ///
    /// # Errors
    /// When there is no such entry.
    pub fn seen(&self, world: &mut World) -> Result<Vec<u32>> {
        let keys = self.journey.first_pair().into_iter().chain(self.second_pair());
        keys.map(|key| world.datapath.last_seen(&key).with_context(|| format!("{key:?}"))).collect()
    }
}

/// A packet that the program leaves alone, by the tables and by its flow cache.
///
/// # Errors
/// What differs.
pub fn passes(world: &mut World, name: &'static str, packet: &[u8]) -> Result<()> {
    let step = Step::untouched(name, Program::FromWire, packet);
    let before = world.datapath.sent_on()?;
    world.always(&step)?;
    ensure!(world.datapath.sent_on()? == before, "{name}: counted as sent on");
    Ok(())
}

/// Kinds of frontends that clients outside use.
pub const KINDS: [FrontendKind; 3] =
    [FrontendKind::NodePort, FrontendKind::ExternalIp, FrontendKind::LoadBalancer];

/// The flags of packets that begin or end a TCP flow.
pub const CHANGES: [u8; 5] =
    [tcp::SYN, tcp::SYN | tcp::ACK, tcp::FIN | tcp::ACK, tcp::RST, tcp::RST | tcp::ACK];
