//! From slices to the lists of endpoints a node may choose from (S-11 to S-13, 2.3).

use std::{collections::BTreeSet, net::SocketAddr};

use serde_json::Value;

use super::{Machine, PortName, World, object};

/// One endpoint of one Service port, as its slice describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Takes new connections.
    pub ready: bool,
    /// Is able to answer.
    pub serving: bool,
    /// Is about to end.
    pub terminating: bool,
    /// The node it runs on, when the slice names it.
    pub node: Option<String>,
    /// The zones whose clients are to use it.
    pub for_zones: Vec<String>,
    /// The nodes whose clients are to use it.
    pub for_nodes: Vec<String>,
}

impl Endpoint {
    fn is_on(&self, here: &Machine) -> bool {
        !here.name.is_empty() && self.node.as_ref() == Some(&here.name)
    }

    /// Is ending, and still answers: better than nothing.
    fn last_resort(&self) -> bool {
        self.serving && self.terminating
    }
}

/// What CategorizeEndpoints says for one Service port, on one node (S-20).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lists {
    /// For traffic policy Cluster.
    pub cluster: BTreeSet<SocketAddr>,
    /// For traffic policy Local.
    pub local: BTreeSet<SocketAddr>,
    /// Whether there is an endpoint for anybody, on any node.
    pub has_any: bool,
}

/// The lists of one Service port, in one family, on one node.
pub fn lists(world: &World<'_>, here: &Machine, port: &PortName, ipv4: bool) -> Lists {
    let all = endpoints(world, here, port, ipv4);
    let ready: Vec<&Endpoint> = all.iter().filter(|endpoint| endpoint.ready).collect();
    let ending: Vec<&Endpoint> = all.iter().filter(|endpoint| endpoint.last_resort()).collect();

    let mut cluster: Vec<&Endpoint> =
        ready.iter().copied().filter(|endpoint| near(endpoint, &ready, here)).collect();
    if cluster.is_empty() {
        // However far away.
        cluster.clone_from(&ending);
    }
    let mut local: Vec<&Endpoint> = ready.iter().copied().filter(|endpoint| endpoint.is_on(here)).collect();
    if local.is_empty() {
        local = ending.iter().copied().filter(|endpoint| endpoint.is_on(here)).collect();
    }
    let addresses = |list: Vec<&Endpoint>| list.into_iter().map(|endpoint| endpoint.address).collect();
    Lists {
        cluster: addresses(cluster),
        local: addresses(local),
        has_any: !ready.is_empty() || !ending.is_empty(),
    }
}

/// Whether topology lets this node use a ready endpoint, of all that are `ready`.
fn near(endpoint: &Endpoint, ready: &[&Endpoint], here: &Machine) -> bool {
    // Hints of a kind count only when every ready endpoint has some, and one of them means us.
    let by_node = ready.iter().all(|it| !it.for_nodes.is_empty())
        && ready.iter().any(|it| it.for_nodes.contains(&here.name));
    if by_node {
        return endpoint.for_nodes.contains(&here.name);
    }
    // Without a zone no hint means us.
    let Some(zone) = &here.zone else { return true };
    let by_zone =
        ready.iter().all(|it| !it.for_zones.is_empty()) && ready.iter().any(|it| it.for_zones.contains(zone));
    if by_zone {
        return endpoint.for_zones.contains(zone);
    }
    true
}

/// The endpoints of one Service port, from all slices of the Service, each address once (S-13).
fn endpoints(world: &World<'_>, here: &Machine, port: &PortName, ipv4: bool) -> Vec<Endpoint> {
    let mut all: Vec<Endpoint> = Vec::new();
    for slice in world.slices.iter().filter(|slice| belongs(slice, world.service, ipv4)) {
        for number in numbers(slice, port) {
            for described in object::items(slice, "/endpoints") {
                let Some(endpoint) = endpoint(described, number, ipv4) else { continue };
                let known = all.iter_mut().find(|it| it.address == endpoint.address);
                match known {
                    None => all.push(endpoint),
                    Some(known) if endpoint.is_on(here) => *known = endpoint,
                    Some(_) => {}
                }
            }
        }
    }
    all
}

/// Whether a slice is one of this Service, in this family (S-02, S-04).
fn belongs(slice: &Value, service: &Value, ipv4: bool) -> bool {
    let of = object::text(slice, "/metadata/labels/kubernetes.io~1service-name");
    of == object::text(service, "/metadata/name")
        && object::text(slice, "/metadata/namespace") == object::text(service, "/metadata/namespace")
        && object::text(slice, "/addressType") == if ipv4 { "IPv4" } else { "IPv6" }
}

/// The numbers that a slice gives a port: found by name and protocol, never by number (S-11).
fn numbers(slice: &Value, wanted: &PortName) -> Vec<u16> {
    let mut numbers = Vec::new();
    for port in object::items(slice, "/ports") {
        // A port without a name field is none; the unnamed port has an empty one.
        let Some(name) = port.get("name").and_then(Value::as_str) else { continue };
        if name == wanted.name && object::protocol(port) == wanted.protocol {
            numbers.extend(object::port(port, "/port"));
        }
    }
    numbers
}

/// One endpoint of a slice (S-12); `None` when it has no address of the family.
fn endpoint(described: &Value, port: u16, ipv4: bool) -> Option<Endpoint> {
    let first = object::texts(described, "/addresses").first().copied()?;
    let address = object::address(first).filter(|address| address.is_ipv4() == ipv4)?;
    let condition = |name: &str, otherwise: bool| {
        let condition = described.pointer(&format!("/conditions/{name}"));
        condition.and_then(Value::as_bool).unwrap_or(otherwise)
    };
    let hinted = |kind: &str| {
        let hints = object::items(described, &format!("/hints/{kind}"));
        hints.iter().map(|hint| object::text(hint, "/name").to_owned()).collect()
    };
    let node = object::text(described, "/nodeName");
    Some(Endpoint {
        address: SocketAddr::new(address, port),
        ready: condition("ready", true),
        serving: condition("serving", true),
        terminating: condition("terminating", false),
        node: Some(node).filter(|node| !node.is_empty()).map(str::to_owned),
        for_zones: hinted("forZones"),
        for_nodes: hinted("forNodes"),
    })
}
