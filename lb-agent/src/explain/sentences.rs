//! The tables' rules as sentences, and the endpoints with their chances.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use lb_common::layout::{Class, Client, FrontendKind};
use lb_common::share::{self, Growth};

use super::lookup::LookedUp;
use super::{Candidate, Facts, Matched, Rule};
use crate::apply::{BackendView, ClassView, ServiceView};
use crate::dataplane::{Affinity, Counters, Map};
use crate::model::Family;
use crate::observe::{class_name, name_of};
use crate::plan::kind_name;

/// What a kind of frontend is called in a sentence.
pub(super) const fn kind_in_words(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "cluster IP",
        FrontendKind::ExternalIp => "external IP",
        FrontendKind::LoadBalancer => "load balancer address",
        FrontendKind::NodePort => "node port",
    }
}

/// The Service port that was found.
pub(super) fn matched(service: &ServiceView, kind: FrontendKind, class: Class, client: Client) -> Matched {
    let name = name_of(service.key.as_ref());
    let who = match client {
        Client::Pod => "a pod of this node",
        Client::Host => "a process of this node",
        Client::Outside => "somebody outside this node",
    };
    Matched {
        says: format!("{name}, by its {}; the client is {who}", kind_in_words(kind)),
        service: name,
        frontend: kind_name(kind),
        class: class_name(class),
    }
}

/// How many endpoints there are for whom.
pub(super) fn of_endpoints(facts: &Facts<'_>, service: &ServiceView, class: Class) -> Rule {
    let chosen = service.class(class).slots.len();
    let all = endpoints(facts, service).filter(|backend| backend.serving).count();
    let local = service
        .class(class)
        .slots
        .iter()
        .filter(|slot| endpoints(facts, service).any(|backend| backend.index == **slot && backend.local))
        .count();
    let whose = match class {
        Class::Internal => "clients of the cluster IP",
        Class::External => "clients outside the node",
        Class::Cluster => "pods and processes of this node, which are served as inside the cluster",
    };
    let mut says = match service.class(class).verdict {
        "random" => {
            format!("{chosen} of {all} serving endpoints are for {whose}; {local} of them on this node")
        }
        "reject" => format!("no endpoint is for {whose}: new connections are refused"),
        "drop" => format!("the traffic policy is Local and no endpoint of this node is for {whose}: dropped"),
        other => format!("the list for {whose} is {other}"),
    };
    if class == Class::External && service.policy.preserve_source {
        says.push_str("; externalTrafficPolicy is Local");
    }
    if chosen > 0 && chosen < all {
        says.push_str("; the others are left out by readiness, traffic policy, or topology hints");
    }
    Rule { rule: "endpoints", says }
}

/// How one of several endpoints is chosen, where it is not by chance.
pub(super) fn of_algorithm(service: &ServiceView, class: Class) -> Option<Rule> {
    (service.class(class).verdict == "maglev").then(|| Rule {
        rule: "maglev",
        says: "a hash of the client's address and port decides (of its address alone with session affinity), by a table \
               that is the same on every node: the chances are those of a client of which nothing is known"
            .to_owned(),
    })
}

/// Who is let in at load balancer addresses.
pub(super) fn of_source_ranges(service: &ServiceView, kind: FrontendKind, found: &LookedUp) -> Option<Rule> {
    let sources = service.policy.sources.as_ref()?;
    let ranges: Vec<String> = sources.iter().map(ToString::to_string).collect();
    let ranges = if ranges.is_empty() { "nobody".to_owned() } else { ranges.join(", ") };
    let says = match (kind, found.admitted) {
        (FrontendKind::LoadBalancer, true) => format!("loadBalancerSourceRanges let the client in: {ranges}"),
        (FrontendKind::LoadBalancer, false) => {
            format!("loadBalancerSourceRanges shut the client out: {ranges}")
        }
        _ => format!("loadBalancerSourceRanges ({ranges}) hold for load balancer addresses only"),
    };
    Some(Rule { rule: "source-ranges", says })
}

/// What the client's last connection says, and whether it holds.
pub(super) fn of_affinity(
    facts: &Facts<'_>,
    service: &ServiceView,
    class: Class,
    found: Option<Affinity>,
) -> Option<(Rule, Option<SocketAddr>)> {
    let timeout = service.policy.affinity_timeout;
    if timeout == 0 {
        return None;
    }
    let holds = |affinity: &Affinity| {
        let row = endpoints(facts, service).find(|backend| backend.index == affinity.backend);
        affinity.age < timeout
            && row.is_some_and(|row| {
                SocketAddr::new(row.address, row.port) == affinity.endpoint && row.classes[class as usize]
            })
    };
    let (says, endpoint) = match found {
        None => (format!("a client stays with its endpoint for {timeout} s; this one has none yet"), None),
        Some(affinity) if holds(&affinity) => (
            format!(
                "the client stays with {}, where its last connection went {} s ago (of {timeout} s)",
                affinity.endpoint, affinity.age
            ),
            Some(affinity.endpoint),
        ),
        Some(affinity) if affinity.age >= timeout => (
            format!(
                "the client's last connection went to {} {} s ago, which is over after {timeout} s: it chooses anew",
                affinity.endpoint, affinity.age
            ),
            None,
        ),
        Some(affinity) => (
            format!(
                "the client's last connection went to {}, which is not among the endpoints any more: it chooses anew",
                affinity.endpoint
            ),
            None,
        ),
    };
    Some((Rule { rule: "affinity", says }, endpoint))
}

/// Whether the endpoint sees the client's address.
pub(super) fn of_masquerade(found: &LookedUp, kind: FrontendKind, client: Client) -> Rule {
    let says = match (found.policy.masquerades(kind, client), client) {
        (true, _) => {
            "the endpoint sees an address of this node as the client, so that its answers come back here"
        }
        (false, Client::Host) => "a process of the node has an address of the node already",
        (false, Client::Outside) => {
            "externalTrafficPolicy is Local: the endpoint sees the client's own address"
        }
        (false, Client::Pod) => "the endpoint sees the client's own address",
    };
    Rule { rule: "masquerade", says: says.to_owned() }
}

/// Whether a new connection may make the table fuller; nothing where everybody may.
pub(super) fn of_share(facts: &Facts<'_>, service: u32, family: Family) -> anyhow::Result<Option<Rule>> {
    let map = if family == Family::V6 { Map::Connections6 } else { Map::Connections4 };
    let size = facts.maps.max_entries(map);
    let counters = Counters::new(facts.maps)?;
    // Counts of both families together: a table is no fuller than that.
    let (total, own) = (counters.entries(0)?, counters.entries(service)?);
    let says = match share::growth(size, total as i64, own as i64, 2) {
        Growth::Free => return Ok(None),
        Growth::Recycle => "new connections take the place of the Service's own recent ones that may end",
        Growth::Bound => {
            "the Service has more than its share: a new connection takes the place of one of its own that may end, or \
             is dropped"
        }
    };
    Ok(Some(Rule {
        rule: "share",
        says: format!(
            "the connection table is nearly full ({total} of {size}, {own} of this Service): {says}"
        ),
    }))
}

/// Every endpoint row of a Service port.
fn endpoints<'f>(
    facts: &Facts<'f>,
    service: &ServiceView,
) -> impl Iterator<Item = &'f BackendView> + use<'f> {
    let index = service.index;
    let family = service.key.as_ref().map(|key| key.family);
    facts.view.backends.iter().filter(move |backend| {
        backend.service == index && family.is_none_or(|family| family == backend.family)
    })
}

/// The endpoints with their chances; `sure` is the one that a new connection of this client gets, where that is known.
pub(super) fn candidates(
    facts: &Facts<'_>,
    service: &ServiceView,
    class: Class,
    sure: Option<SocketAddr>,
) -> Vec<Candidate> {
    let ClassView { slots, weights, .. } = service.class(class);
    let counts: HashMap<u32, u32> = slots.iter().copied().zip(weights.iter().copied()).collect();
    let all: u32 = weights.iter().sum();
    let candidate = |backend: &BackendView| {
        let endpoint = SocketAddr::new(backend.address, backend.port);
        let share = counts.get(&backend.index).map_or(0.0, |count| f64::from(*count) / f64::from(all));
        let is_listed = backend.classes.iter().any(|listed| *listed);
        let (probability, note) = match sure {
            Some(sure) if sure == endpoint => (1.0, Some("the client stays with it")),
            Some(_) => (0.0, None),
            None if share > 0.0 => (share, None),
            None if is_listed => (0.0, Some("left out for this client: traffic policy or topology hints")),
            None if backend.serving => {
                (0.0, Some("gets no new connections: terminating, or kept in reserve"))
            }
            None => (0.0, Some("not serving")),
        };
        Candidate {
            endpoint,
            probability,
            state: match (is_listed, backend.serving) {
                (true, _) => "active",
                (false, true) => "serving",
                (false, false) => "gone",
            },
            local: backend.local,
            chosen: false,
            note,
        }
    };
    let mut candidates: Vec<Candidate> = endpoints(facts, service).map(candidate).collect();
    candidates.sort_by(|a, b| b.probability.total_cmp(&a.probability).then(a.endpoint.cmp(&b.endpoint)));
    candidates
}

/// Ports that the Services at an address have, as `80/TCP (default/web:http)`.
pub(super) fn ports_at(facts: &Facts<'_>, address: IpAddr) -> Vec<String> {
    let mut ports: Vec<(u16, String)> = Vec::new();
    for service in &facts.view.services {
        for frontend in service.frontends.iter().filter(|frontend| frontend.address == address) {
            if frontend.kind != FrontendKind::NodePort {
                let protocol = crate::observe::protocol_name(frontend.protocol);
                let name = name_of(service.key.as_ref());
                ports.push((frontend.port, format!("{}/{protocol} ({name})", frontend.port)));
            }
        }
    }
    ports.sort();
    ports.into_iter().map(|(_, text)| text).collect()
}
