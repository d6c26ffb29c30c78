//! Flows through all four hooks: from a pod or from outside, through any kind of frontend, to an endpoint on this node or
//! beyond the network.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use lb_common::layout::{BackendFlags, Class, Client, FrontendKind, Policy, ServiceVerdict};
use lb_common::proto::{self, tcp};
use lb_common::sctp;

use super::case::{Flow, Step, World};
use super::counters::Event;
use super::entries::Ends;
use super::packet::Packet;
use super::{BackendSpec, MASQUERADE_PORTS, Program, Verdict};

/// Where an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// A pod of this node.
    Here,
    /// Reached through a network device.
    Beyond,
}

/// A flow, and what becomes of it at each hook.
#[derive(Clone, Copy, Debug)]
pub struct Journey {
    /// Client, Service and endpoint.
    pub flow: Flow,
    /// Who the client is: a pod, or outside.
    pub client: Client,
    /// Where the endpoint is.
    pub site: Site,
    /// What the endpoint sees as the source: the client, or an address and port of the node.
    pub source: SocketAddr,
}

/// The address that flows of a world are masqueraded with, host 250 of its network.
pub fn node(world: &World) -> IpAddr {
    world.host(250)
}

/// The source port that a flow gets when no other flow has it: its own, moved into the range.
pub fn own_port(port: u16) -> u16 {
    let (first, count) = MASQUERADE_PORTS;
    let port = u32::from(port);
    let above =
        if port >= first { port - first } else { (u64::from(port) + (1 << 32) - u64::from(first)) as u32 };
    (first + above % count) as u16
}

impl Journey {
    /// True when the endpoint does not see the client's address.
    pub fn is_masqueraded(&self) -> bool {
        self.source.ip() != self.flow.client.ip()
    }

    /// The program that the client's packets come in by.
    pub fn entrance(&self) -> Program {
        if self.client == Client::Pod { Program::FromPod } else { Program::FromNet }
    }

    /// The program that the answers leave by.
    pub fn exit(&self) -> Program {
        if self.client == Client::Pod { Program::ToPod } else { Program::ToNet }
    }

    /// The programs at the endpoint's side: that of what it receives and that of what it sends.
    pub fn far_side(&self) -> (Program, Program) {
        match self.site {
            Site::Here => (Program::ToPod, Program::FromPod),
            Site::Beyond => (Program::ToNet, Program::FromNet),
        }
    }

    /// The client's packet comes in.
    pub fn comes_in(&self, name: &'static str, request: &Packet) -> Step {
        let step = self.flow.goes(name, request);
        step.at(self.entrance())
    }

    /// The same packet leaves for the endpoint.
    pub fn leaves(&self, name: &'static str, request: &Packet) -> Step {
        let (arrives, _) = self.far_side();
        let packet = request.between(self.flow.client, self.flow.endpoint);
        let becomes = packet.between(self.source, self.flow.endpoint);
        self.uncounted(name, arrives, &packet, &becomes)
    }

    /// The endpoint's answer to what it saw.
    pub fn response(&self, flags: u8) -> Packet {
        let packet = self.flow.response(flags);
        packet.between(self.flow.endpoint, self.source)
    }

    /// The answer comes back to the node.
    pub fn comes_back(&self, name: &'static str, response: &Packet) -> Step {
        let (_, sends) = self.far_side();
        let becomes = response.between(self.flow.endpoint, self.flow.client);
        self.uncounted(name, sends, response, &becomes)
    }

    /// The same answer leaves for the client.
    pub fn returns(&self, name: &'static str, response: &Packet) -> Step {
        let response = response.between(self.flow.endpoint, self.flow.client);
        self.flow.returns(name, &response).at(self.exit())
    }

    fn uncounted(&self, name: &'static str, program: Program, packet: &Packet, becomes: &Packet) -> Step {
        let event = Event::Reselected(0);
        let step = Step::carried(name, program, packet, Verdict::Pass, becomes, event);
        Step { events: Vec::new(), ..step }
    }

    /// Both steps of a packet of the client that opens a connection.
    pub fn opens(&self, request: &Packet) -> Vec<Step> {
        let opened = Event::Opened(self.flow.service, self.flow.backend);
        vec![
            self.comes_in("the first packet", request).and(opened),
            self.leaves("the first packet leaves", request),
        ]
    }

    /// Both steps of a packet of the client.
    pub fn request(&self, flags: u8) -> Vec<Step> {
        let request = self.flow.request(flags);
        vec![self.comes_in("a request", &request), self.leaves("a request leaves", &request)]
    }

    /// Both steps of a packet of the endpoint.
    pub fn answer(&self, flags: u8) -> Vec<Step> {
        let response = self.response(flags);
        vec![self.comes_back("a response", &response), self.returns("a response leaves", &response)]
    }

    /// From the first packet to an established flow.
    pub fn handshake(&self) -> Vec<Step> {
        if self.flow.protocol == proto::UDP {
            return [self.opens(&self.flow.request(0)), self.answer(0)].concat();
        }
        if self.flow.protocol == proto::SCTP {
            return [
                self.opens(&self.flow.request(sctp::INIT)),
                self.answer(sctp::INIT_ACK),
                self.request(sctp::COOKIE_ECHO),
                self.answer(sctp::COOKIE_ACK),
            ]
            .concat();
        }
        let opening = self.opens(&self.flow.request(tcp::SYN));
        [opening, self.answer(tcp::SYN | tcp::ACK), self.request(tcp::ACK)].concat()
    }

    /// Keys of the pair that translates the destination: the client's packets, the answers.
    pub fn first_pair(&self) -> [Ends; 2] {
        [self.flow.key(), self.flow.reply_key()]
    }

    /// Keys of the pair that translates the source.
    pub fn second_pair(&self) -> [Ends; 2] {
        let protocol = self.flow.protocol;
        let (client, endpoint) = (self.flow.client, self.flow.endpoint);
        [Ends { src: client, dst: endpoint, protocol }, Ends { src: endpoint, dst: self.source, protocol }]
    }
}

impl World {
    /// An endpoint at a new address: a pod here whose way is known, or one beyond the network whose way is not.
    pub fn endpoint_at(&mut self, site: Site) -> BackendSpec {
        let spec = self.endpoint(8080);
        match site {
            Site::Here => spec,
            Site::Beyond => BackendSpec { flags: BackendFlags::SERVING, interface: 0, mac: [0; 6], ..spec },
        }
    }

    /// Lets flows be masqueraded with [`node`], whatever device they leave by.
    ///
    /// # Errors
    /// When the kernel refuses the store.
    pub fn give_masquerade_address(&mut self) -> Result<()> {
        match node(self) {
            IpAddr::V4(address) => self.datapath.masquerade(0, Some(address), None),
            IpAddr::V6(address) => self.datapath.masquerade(0, None, Some(address)),
        }
    }

    /// A new address and port for a frontend of a Service, with what the tables need for it. Node ports differ in their
    /// ports, because a port is the same at every node address.
    ///
    /// # Errors
    /// When a table is full.
    pub fn frontend(&mut self, service: u32, kind: FrontendKind) -> Result<SocketAddr> {
        let node_port = 30_000 + service as u16;
        let port = if kind == FrontendKind::NodePort { node_port } else { 80 };
        let frontend = SocketAddr::new(self.address(), port);
        self.datapath.frontend(frontend, self.protocol, service, kind)?;
        if kind == FrontendKind::NodePort {
            self.datapath.node_address(frontend.ip())?;
        }
        Ok(frontend)
    }

    /// A Service with one frontend, one endpoint in every class's list and a policy, and a client of it.
    ///
    /// # Errors
    /// When a table is full.
    pub fn journey(&mut self, kind: FrontendKind, client: Client, site: Site, flags: u32) -> Result<Journey> {
        let spec = self.endpoint_at(site);
        let service = self.datapath.empty_service();
        let backend = self.datapath.backend(service, &spec)?;
        for class in Class::ALL {
            self.datapath.publish_class(service, class, ServiceVerdict::Random, &[backend])?;
        }
        self.datapath.policy(service, Policy { affinity_timeout: 0, flags })?;
        let vip = self.frontend(service, kind)?;
        self.give_masquerade_address()?;
        let address = SocketAddr::new(self.address(), 40_000);
        Ok(self.journey_to(service, backend, &spec, vip, kind, client, site, flags, address))
    }

    /// What a client at `address` is to see of a Service, by the words of the specification (S-30, S-33).
    #[expect(clippy::too_many_arguments, reason = "everything that the expectation is made of")]
    pub fn journey_to(
        &self,
        service: u32,
        backend: u32,
        spec: &BackendSpec,
        vip: SocketAddr,
        kind: FrontendKind,
        client: Client,
        site: Site,
        flags: u32,
        address: SocketAddr,
    ) -> Journey {
        let keeps_source = match (kind, client) {
            (FrontendKind::ClusterIp, Client::Pod) => true,
            (FrontendKind::ClusterIp, _) => false,
            _ => flags & Policy::PRESERVE_SOURCE != 0,
        };
        let source =
            if keeps_source { address } else { SocketAddr::new(node(self), own_port(address.port())) };
        // Only what stays between pods with their own addresses leaves the stack out.
        let short = self.forwarding == lb_common::layout::Forwarding::Redirect
            && client == Client::Pod
            && keeps_source;
        let flow = Flow {
            protocol: self.protocol,
            client: address,
            vip,
            endpoint: spec.endpoint,
            service,
            backend,
            direct: short && spec.interface != 0,
            redirects: short,
        };
        Journey { flow, client, site, source }
    }
}
