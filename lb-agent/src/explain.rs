//! What becomes of a packet to a Service, and why: told in words, by sending one through a shadow of the programs that serve.
//!
//! Everything comes from the kernel: which programs are attached and what they were loaded with, tables, routes. So it works
//! while no agent runs. Nothing is sent, and no table changes.

mod advice;
mod lookup;
mod packet;
mod place;
mod question;
mod sentences;
mod socket;
mod story;
mod text;

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::apply::{ServiceView, TablesView, view};
use crate::dataplane::mapped::{Access, MappedMemory};
use crate::dataplane::{Attachments, Constants, Maps, Pins};
use crate::net::{Depth, Follower};
use place::Node;

pub use question::{From, Question, To};

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// Who sends.
    pub from: SocketAddr,
    /// To what.
    pub to: SocketAddr,
    /// Transport protocol.
    pub protocol: String,
    /// The programs that were asked.
    pub programs: Programs,
    /// Where the packet is met.
    pub enters: Enters,
    /// The Service port; `null` when there is none at that address and port.
    pub service: Option<Matched>,
    /// The connection that the packet belongs to, where it is known already.
    pub connection: Option<Existing>,
    /// What decides about it, in the order in which it is decided.
    pub rules: Vec<Rule>,
    /// Endpoints that a new connection may go to, and those that it may not.
    pub candidates: Vec<Candidate>,
    /// What happened to the packet on its way, and to an answer.
    pub steps: Vec<Step>,
    /// What it comes to.
    pub verdict: Verdict,
    /// What is wrong with this node's datapath, beside the packet.
    pub problems: Vec<String>,
}

/// The programs that were asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Programs {
    /// Forwarding mode that they were loaded with: `stack` or `redirect`; `null` when nobody knows.
    pub forwarding: Option<&'static str>,
    /// Tag of the program that serves where the packet is met; `null` when none is attached.
    pub attached: Option<String>,
    /// Tag of the one that was asked. The same one has the same instructions.
    pub asked: Option<String>,
}

/// Where a packet is met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Enters {
    /// `pod`: the device of a pod of this node; `network`: a device that leads out of the node; `socket`: when a process
    /// connects.
    pub at: &'static str,
    /// Name of the device.
    pub device: Option<String>,
    /// Its interface index.
    pub interface: Option<u32>,
    /// The program.
    pub program: &'static str,
    /// It is attached there.
    pub attached: bool,
    /// In words.
    pub says: String,
}

/// A Service port at an address and port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Matched {
    /// `namespace/name` or `namespace/name:port`; `-` for a row without a name.
    pub service: String,
    /// `clusterIP`, `externalIP`, `loadBalancer` or `nodePort`.
    pub frontend: &'static str,
    /// Who the client is to it: `internal` (at a cluster IP), `external` (outside the node, elsewhere), `inside` (of this
    /// node, elsewhere).
    pub class: &'static str,
    /// In words.
    pub says: String,
}

/// A connection that is known already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Existing {
    /// State, as the kernel's own connection tracking names it.
    pub state: &'static str,
    /// The endpoint it goes to.
    pub endpoint: SocketAddr,
    /// Seconds since its first packet.
    pub age_seconds: u32,
    /// Seconds since its last packet; exact to a few seconds.
    pub idle_seconds: u32,
    /// In words.
    pub says: String,
}

/// Something that decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Its name: `endpoints`, `source-ranges`, `affinity`, `masquerade`, `hairpin`, `share`, `source`, `datagrams`.
    pub rule: &'static str,
    /// In words.
    pub says: String,
}

/// An endpoint of the Service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// Address and port.
    pub endpoint: SocketAddr,
    /// How probable it is that a new connection of this client goes there, from 0 to 1.
    pub probability: f64,
    /// `active`, `serving` (keeps its flows, gets no new ones) or `gone`.
    pub state: &'static str,
    /// It runs on this node, as far as its way tells; `null` when it does not.
    pub local: bool,
    /// The packet of this explanation went there.
    pub chosen: bool,
    /// Why it is not chosen, or always.
    pub note: Option<&'static str>,
}

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// `request` or `answer`.
    pub way: &'static str,
    /// Program and device, or what else had the packet.
    pub at: String,
    /// What it did.
    pub does: String,
    /// The packet afterwards: source and destination.
    pub packet: Option<(SocketAddr, SocketAddr)>,
}

/// What it comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// `carried` (to an endpoint), `answered` (a ping, by the program), `refused`, `dropped` or `passed` (none of our
    /// business: the host's routing has it).
    pub outcome: &'static str,
    /// Name of the counted reason of what is refused or dropped.
    pub reason: Option<&'static str>,
    /// In words.
    pub says: String,
    /// What to do, where something is to be done.
    pub advice: Option<String>,
}

/// Everything that an answer is made of.
struct Facts<'f> {
    pins: &'f Pins,
    object: Option<&'f Path>,
    maps: &'f Maps,
    memory: &'f MappedMemory,
    view: &'f TablesView,
    attached: &'f Attachments,
    constants: Option<Constants>,
    node: Node<'f>,
}

impl Facts<'_> {
    /// A Service port by the index of its row.
    fn service(&self, index: u32) -> Option<&ServiceView> {
        let at = self.view.services.binary_search_by_key(&index, |service| service.index).ok()?;
        Some(&self.view.services[at])
    }
}

/// Explains. `object` is loaded instead of the embedded one.
///
/// # Errors
/// There are no tables, or the kernel does not tell what is to be told.
pub async fn explain(question: &Question, pins: &Pins, object: Option<&Path>) -> anyhow::Result<Explanation> {
    let maps = Maps::open(pins)?;
    let memory = maps.tables(Access::Read).context("mapping the tables")?;
    let view = view(&memory);
    let follower = Follower::connect(Depth::Ways).context("opening a netlink socket")?;
    let mirror = follower.dump().await.context("asking the kernel for devices and routes")?;
    let interfaces: Vec<u32> = mirror.links().map(|link| link.index).collect();
    let attached = Attachments::find(pins, follower.handle(), interfaces).await?;
    let facts = Facts {
        pins,
        object,
        maps: &maps,
        memory: &memory,
        view: &view,
        attached: &attached,
        constants: attached.constants(object)?,
        node: Node { mirror: &mirror, attached: &attached, view: &view },
    };
    story::tell(question, &facts)
}
