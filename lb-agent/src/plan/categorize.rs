//! CategorizeEndpoints (S-20): which endpoints a new connection may reach, by traffic policy and topology.

use std::net::IpAddr;

use crate::model::{Endpoint, NodeFacts};

/// What an endpoint's topology hints of one kind say about this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hint {
    /// There are none; one such ready endpoint disables the kind for all (2.3).
    Absent,
    /// They name other nodes or zones.
    Elsewhere,
    /// They name this node or its zone.
    Here,
}

/// One endpoint of a Service port, as this node sees it.
///
/// The field order matters: of two copies of one address and port (S-13) the greater one is kept, so a local copy
/// wins over a remote one, and else the copy that can do more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) local: bool,
    pub(super) ready: bool,
    pub(super) serving: bool,
    pub(super) terminating: bool,
    pub(super) node_hint: Hint,
    pub(super) zone_hint: Hint,
}

impl Candidate {
    /// Judges an endpoint from the node's point of view. Without a node name nothing is local, and without a zone no
    /// zone hint can match (S-12, 2.3 note d).
    pub(super) fn new(endpoint: &Endpoint, port: u16, node: &NodeFacts) -> Self {
        let node_name = Some(&node.name).filter(|name| !name.is_empty());
        Self {
            address: endpoint.address,
            port,
            local: node.has(endpoint),
            ready: endpoint.conditions.ready,
            serving: endpoint.conditions.serving,
            terminating: endpoint.conditions.terminating,
            node_hint: Hint::of(&endpoint.node_hints, node_name.map(|name| &**name)),
            zone_hint: Hint::of(&endpoint.zone_hints, node.zone.as_deref()),
        }
    }

    fn falls_back(&self) -> bool {
        self.serving && self.terminating
    }
}

impl Hint {
    fn of(hints: &[std::sync::Arc<str>], own: Option<&str>) -> Self {
        if hints.is_empty() {
            Self::Absent
        } else if own.is_some_and(|own| hints.iter().any(|hint| &**hint == own)) {
            Self::Here
        } else {
            Self::Elsewhere
        }
    }
}

/// The outcome; the lists are ascending indices into the candidates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Categories {
    /// For policy Cluster: ready endpoints that topology allows, or else serving terminating ones.
    pub(super) cluster: Vec<u32>,
    /// For policy Local: ready endpoints on this node, or else serving terminating ones on this node.
    pub(super) local: Vec<u32>,
    /// True when some endpoint could be used by someone, somewhere in the cluster.
    pub(super) has_any: bool,
}

/// Sorts the candidates of one Service port into categories, exactly as spec 2.3 writes it.
///
/// `uses_cluster` and `uses_local` say which lists the Service's policies ask for (S-14); the other stays empty.
pub(super) fn categorize(candidates: &[Candidate], uses_cluster: bool, uses_local: bool) -> Categories {
    let mut out = Categories::default();
    if uses_cluster {
        let mode = topology_mode(candidates);
        out.cluster = select(candidates, |c| c.ready && mode.allows(c));
        if out.cluster.is_empty() {
            out.cluster = select(candidates, Candidate::falls_back);
        }
        out.has_any = !out.cluster.is_empty();
    }
    if uses_local {
        out.has_any |= candidates.iter().any(|c| c.ready || c.falls_back());
        out.local = select(candidates, |c| c.local && c.ready);
        if out.local.is_empty() {
            out.local = select(candidates, |c| c.local && c.falls_back());
        }
    }
    out
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TopologyMode {
    SameNode,
    SameZone,
    Everywhere,
}

impl TopologyMode {
    fn allows(self, candidate: &Candidate) -> bool {
        match self {
            Self::SameNode => candidate.node_hint == Hint::Here,
            Self::SameZone => candidate.zone_hint == Hint::Here,
            Self::Everywhere => true,
        }
    }
}

/// Node hints first, then zone hints; a kind counts only when every ready endpoint has it and one of them means us,
/// so that topology alone never leaves a node without endpoints (2.3 notes e and f).
fn topology_mode(candidates: &[Candidate]) -> TopologyMode {
    let usable = |hint: fn(&Candidate) -> Hint| {
        let mut here = false;
        for candidate in candidates.iter().filter(|c| c.ready) {
            match hint(candidate) {
                Hint::Absent => return false,
                Hint::Elsewhere => {}
                Hint::Here => here = true,
            }
        }
        here
    };
    if usable(|c| c.node_hint) {
        TopologyMode::SameNode
    } else if usable(|c| c.zone_hint) {
        TopologyMode::SameZone
    } else {
        TopologyMode::Everywhere
    }
}

fn select(candidates: &[Candidate], wanted: impl Fn(&Candidate) -> bool) -> Vec<u32> {
    (0u32..).zip(candidates).filter(|(_, c)| wanted(c)).map(|(index, _)| index).collect()
}

#[cfg(test)]
#[path = "categorize_tests.rs"]
mod tests;
