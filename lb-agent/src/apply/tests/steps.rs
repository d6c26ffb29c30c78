//! The text form of scenarios: plans and events in, what the tables say out.
//!
//! ```text
//! service default/web created=5          the plan of a Service; its ports follow, indented:
//!   http TCP 10.96.0.1:80 -> 10.0.0.1:8080 10.0.0.2:8080@ 10.0.0.3:8080~!
//!     at nodePort=*:30080 externalIP=203.0.113.7:80 loadBalancer=203.0.113.8:80
//!     outside -> 10.0.0.2:8080           what those lead to: clients outside, and those of the node; without these
//!     inside -> 10.0.0.1:8080            lines, what the cluster IP leads to
//!     sources 192.0.2.0/24               of load balancer addresses
//!     keeps source
//!     affinity 60
//! remove default/web
//! node 192.0.2.1 10.9.0.1 ports 10.9.0.1 addresses of the node, and those of node ports
//! apply | apply full                     hands everything since the last `apply` over
//! way 10.0.0.1 local 7 02:00:00:00:00:01 | way 10.0.0.1 neighbour 2 | way 10.0.0.1 none
//! ranges 10.96.0.0/12
//! die 3                                  the next `apply` gets 3 stores done, then another agent takes over
//! dump                                   the tables
//! ```
//!
//! A port named `-` has no name. Endpoints: `@` local, `~` does not serve, `!` not chosen. Instead of choosing, a
//! port may say `reject` or `drop`. Lines that begin with `|` are what comes out.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::apply::{NodeAddresses, TableKey, Way, WayKind};
use crate::model::{Cidr, Family, ObjectName, Protocol};
use crate::plan::{
    Algorithm, ClassPlan, EndpointPlan, ExternalPlan, Frontend, FrontendKind, ServicePlan, ServicePortKey,
    ServicePortPlan, Verdict,
};

/// One line of a scenario, with the port lines that belong to it.
#[derive(Debug)]
pub(super) enum Step {
    Service(ServicePlan),
    Remove(ObjectName),
    Apply { full: bool },
    Way(std::net::IpAddr, Option<Way>),
    Ranges(Vec<(std::net::IpAddr, u8)>),
    Node(NodeAddresses),
    Die(u64),
    Dump,
}

/// Reads a scenario: each step with the lines it is made of. Comments belong to the step after them.
pub(super) fn parse(text: &str) -> Vec<(String, Step)> {
    let mut steps: Vec<(String, Step)> = Vec::new();
    let mut source = String::new();
    for line in text.lines().filter(|line| !line.starts_with('|')) {
        if line.starts_with(' ') {
            let (lines, step) = steps.last_mut().expect("a port without Service");
            lines.push_str(&format!("{line}\n"));
            let Step::Service(plan) = step else { panic!("{line:?} belongs to no Service") };
            if line.starts_with("    ") {
                detail(plan.ports.last_mut().expect("a port before its details"), line);
            } else {
                plan.ports.push(port(&plan.service, line));
            }
            continue;
        }
        source.push_str(&format!("{line}\n"));
        if !line.is_empty() && !line.starts_with('#') {
            steps.push((std::mem::take(&mut source), step(line)));
        }
    }
    for (_, step) in &mut steps {
        if let Step::Service(plan) = step {
            plan.ports.sort_by(|a, b| a.key.cmp(&b.key));
        }
    }
    steps
}

fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').expect("namespace/name");
    ObjectName::new(namespace, name)
}

fn step(line: &str) -> Step {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["service", service, ref rest @ ..] => {
            let created = rest.first().map(|word| word.strip_prefix("created=").unwrap().parse().unwrap());
            Step::Service(ServicePlan {
                service: name(service),
                created,
                ports: Vec::new(),
                health_check: None,
            })
        }
        ["remove", service] => Step::Remove(name(service)),
        ["apply"] => Step::Apply { full: false },
        ["apply", "full"] => Step::Apply { full: true },
        ["way", address, "none"] => Step::Way(address.parse().unwrap(), None),
        ["way", address, "neighbour", interface] => {
            let interface = interface.parse().unwrap();
            Step::Way(
                address.parse().unwrap(),
                Some(Way { interface, mac: [0; 6], kind: WayKind::Neighbour }),
            )
        }
        ["way", address, "local", interface, mac] => {
            let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
            let (interface, mac) = (interface.parse().unwrap(), bytes.try_into().unwrap());
            Step::Way(address.parse().unwrap(), Some(Way { interface, mac, kind: WayKind::Local }))
        }
        ["ranges", ref ranges @ ..] => {
            let range = |text: &&str| {
                let (address, prefix) = text.split_once('/').unwrap();
                (address.parse().unwrap(), prefix.parse().unwrap())
            };
            Step::Ranges(ranges.iter().map(range).collect())
        }
        ["node", ref rest @ ..] => {
            let mut parts = rest.split(|word| *word == "ports");
            let mut addresses =
                || parts.next().unwrap_or_default().iter().map(|text| text.parse().unwrap()).collect();
            Step::Node(NodeAddresses { local: addresses(), node_ports: addresses() })
        }
        ["die", stores] => Step::Die(stores.parse().unwrap()),
        ["dump"] => Step::Dump,
        _ => panic!("not a step: {line:?}"),
    }
}

/// A line that says more of a port.
fn detail(port: &mut ServicePortPlan, line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    if let ["affinity", seconds] = words[..] {
        port.affinity_timeout = Some(seconds.parse().unwrap());
        return;
    }
    let endpoint = |text: &&str| {
        let address: SocketAddr = text.parse().unwrap();
        let target = (address.ip(), address.port());
        port.endpoints
            .binary_search_by_key(&target, |e| (e.address, e.port))
            .expect("an endpoint of the port") as u32
    };
    let verdict = |words: &[&str]| match words {
        ["reject"] => Verdict::Reject,
        ["drop"] => Verdict::Drop,
        _ => Verdict::Balance(words.iter().map(endpoint).collect()),
    };
    if let ["at", ref frontends @ ..] = words[..] {
        let mut frontends: Vec<Frontend> =
            frontends.iter().map(|text| frontend(text, port.key.family)).collect();
        frontends.sort_unstable();
        let (verdict, inside) = (port.internal.verdict.clone(), port.internal.verdict.clone());
        port.external = Some(ExternalPlan {
            frontends,
            verdict,
            inside,
            preserve_source: false,
            source_ranges: Vec::new(),
        });
        return;
    }
    let list = match words[..] {
        ["outside" | "inside", "->", ref endpoints @ ..] => Some(verdict(endpoints)),
        _ => None,
    };
    let external = port.external.as_mut().expect("frontends first");
    match words[..] {
        ["outside", ..] => external.verdict = list.unwrap(),
        ["inside", ..] => external.inside = list.unwrap(),
        ["keeps", "source"] => external.preserve_source = true,
        ["sources", ref ranges @ ..] => {
            external.source_ranges = ranges.iter().map(|text| range(text)).collect();
        }
        _ => panic!("not a detail: {line:?}"),
    }
}

fn range(text: &str) -> Cidr {
    let (address, prefix) = text.split_once('/').unwrap();
    Cidr::new(address.parse().unwrap(), prefix.parse().unwrap()).unwrap()
}

fn frontend(text: &str, family: Family) -> Frontend {
    let (kind, at) = text.split_once('=').expect("kind=address");
    let kind = match kind {
        "nodePort" => {
            let port = at.strip_prefix("*:").unwrap().parse().unwrap();
            let address = TableKey::node_port(family, port, 0).address;
            return Frontend { address, port, kind: FrontendKind::NodePort };
        }
        "externalIP" => FrontendKind::ExternalIp,
        "loadBalancer" => FrontendKind::LoadBalancer,
        _ => panic!("not a kind: {text:?}"),
    };
    let at: SocketAddr = at.parse().unwrap();
    Frontend { address: at.ip(), port: at.port(), kind }
}

fn port(service: &ObjectName, line: &str) -> ServicePortPlan {
    let (head, tail) = line.split_once(" -> ").expect("frontends -> endpoints");
    let [name, protocol, frontends] = head.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("not a port: {line:?}")
    };
    let frontend = |text: &str| {
        let address: SocketAddr = text.parse().unwrap();
        Frontend { address: address.ip(), port: address.port(), kind: FrontendKind::ClusterIp }
    };
    let mut frontends: Vec<Frontend> = frontends.split(',').map(frontend).collect();
    frontends.sort_unstable();
    let mut verdict = None;
    let mut endpoints = BTreeMap::new();
    for word in tail.split_whitespace() {
        match word {
            "reject" => verdict = Some(Verdict::Reject),
            "drop" => verdict = Some(Verdict::Drop),
            _ => {
                let address: SocketAddr = word.trim_end_matches(['@', '~', '!']).parse().unwrap();
                let (local, serving) = (word.contains('@'), !word.contains('~'));
                let endpoint = EndpointPlan { address: address.ip(), port: address.port(), local, serving };
                endpoints.insert((address.ip(), address.port()), (endpoint, !word.contains('!')));
            }
        }
    }
    let chosen = endpoints.values().zip(0..).filter(|((_, chosen), _)| *chosen).map(|(_, at)| at).collect();
    let family = Family::of(frontends[0].address);
    let port_name = if name == "-" { "" } else { name };
    let protocol = match protocol {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        _ => Protocol::Sctp,
    };
    ServicePortPlan {
        key: ServicePortKey { service: service.clone(), port_name: port_name.into(), protocol, family },
        endpoints: endpoints.into_values().map(|(endpoint, _)| endpoint).collect(),
        internal: ClassPlan { frontends, verdict: verdict.unwrap_or(Verdict::Balance(chosen)) },
        external: None,
        affinity_timeout: None,
        algorithm: Algorithm::Random,
    }
}
