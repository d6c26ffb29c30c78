//! The text form of scenarios: plans and events in, what the tables say out.
//!
//! ```text
//! service default/web created=5          the plan of a Service; its ports follow, indented:
//!   http TCP 10.96.0.1:80 -> 10.0.0.1:8080 10.0.0.2:8080@ 10.0.0.3:8080~!
//! remove default/web
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

use crate::apply::{Way, WayKind};
use crate::model::{Family, ObjectName, Protocol};
use crate::plan::{
    ClassPlan, EndpointPlan, Frontend, FrontendKind, ServicePlan, ServicePortKey, ServicePortPlan, Verdict,
};

/// One line of a scenario, with the port lines that belong to it.
#[derive(Debug)]
pub(super) enum Step {
    Service(ServicePlan),
    Remove(ObjectName),
    Apply { full: bool },
    Way(std::net::IpAddr, Option<Way>),
    Ranges(Vec<(std::net::IpAddr, u8)>),
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
            let port = port(&plan.service, line);
            plan.ports.push(port);
            plan.ports.sort_by(|a, b| a.key.cmp(&b.key));
            continue;
        }
        source.push_str(&format!("{line}\n"));
        if !line.is_empty() && !line.starts_with('#') {
            steps.push((std::mem::take(&mut source), step(line)));
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
            Step::Service(ServicePlan { service: name(service), created, ports: Vec::new(), health_check: None })
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
        ["die", stores] => Step::Die(stores.parse().unwrap()),
        ["dump"] => Step::Dump,
        _ => panic!("not a step: {line:?}"),
    }
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
    }
}
