//! A packet's way through a shadow of the programs, step by step, and that of an answer.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use lb_common::layout::{Client, FrontendKind};
use lb_common::lookup::Unserved;
use lb_common::proto;
use lb_common::reason::Reason;

use super::lookup::{LookedUp, look_up};
use super::packet::{self, Part, Seen};
use super::place::{Located, Place};
use super::{
    Enters, Existing, Explanation, Facts, Programs, Question, Rule, Step, Verdict, advice, sentences, socket,
};
use crate::dataplane::{Ends, Fate, Hook, Ran, Role, Shadow, ShadowFlow, Via, affinity};
use crate::observe::protocol_name;

/// The first of the ports that a client that was named without one is given: such as clients choose themselves.
const SOME_PORT: u16 = 50_000;

/// Tells the whole story.
pub(super) fn tell(question: &Question, facts: &Facts<'_>) -> anyhow::Result<Explanation> {
    let located = facts.node.locate(question.from.address);
    let client = located.client();
    let question = if client == Client::Host { question.of_host() } else { *question };
    let (server, protocol) = (question.to.end, question.to.protocol);
    let port = if question.is_ping() { Some(0) } else { question.from.port };
    let ends = |port| Ends { from: SocketAddr::new(question.from.address, port), to: server, protocol };
    if client == Client::Host || socket::serves(facts, client, &ends(0)) {
        let ends = ends(port.unwrap_or(SOME_PORT));
        if client == Client::Host && !socket::serves(facts, client, &ends) {
            return Ok(unserved_process(&question, facts, &ends));
        }
        return socket::tell(&question, facts, &ends, client);
    }
    let shadow = Shadow::load(facts.pins, facts.maps, facts.object, facts.constants.as_ref(), &Hook::ALL)
        .context("loading a shadow of the programs")?;
    let (ends, known) = match port {
        Some(port) => (ends(port), shadow.copy_flow(facts.maps, &ends(port))?),
        None => (unused(facts, &shadow, ends)?, None),
    };
    let Some(entry) = located.place().cloned().or_else(|| facts.node.way_out(server.is_ipv6())) else {
        let mut told = empty(&question, facts, &ends);
        told.verdict.says =
            "the host has no route to the client: its packets come in nowhere known".to_owned();
        return Ok(told);
    };
    Teller { question, facts, shadow, ends, client, entry }.tell(known)
}

/// A client's port that no connection to the destination has.
fn unused(facts: &Facts<'_>, shadow: &Shadow, ends: impl Fn(u16) -> Ends) -> anyhow::Result<Ends> {
    for port in SOME_PORT..SOME_PORT + 1000 {
        if shadow.copy_flow(facts.maps, &ends(port))?.is_none() {
            return Ok(ends(port));
        }
    }
    Ok(ends(SOME_PORT))
}

/// A process of the node, whose calls nobody translates.
fn unserved_process(question: &Question, facts: &Facts<'_>, ends: &Ends) -> Explanation {
    let mut told = empty(question, facts, ends);
    told.enters = Enters {
        at: "socket",
        device: None,
        interface: None,
        program: socket::hook(ends.to.is_ipv6()).program(),
        attached: false,
        says: "a process of this node; no program is attached for such calls".to_owned(),
    };
    let found = look_up(facts.memory, ends, Client::Host);
    told.verdict = Verdict {
        outcome: "passed",
        reason: None,
        says: "nothing is translated: the packets go where the host's routes lead".to_owned(),
        advice: found.frontend.is_some().then(|| match ends.protocol {
            proto::TCP | proto::UDP => {
                "it is an address of a Service: run lb-agent with --socket-lb=host (the default) \
                                        and a cgroup v2 hierarchy; `lb-agent check` tells what is missing"
                    .to_owned()
            }
            _ => "it is an address of a Service: only TCP and UDP sockets of the node are served".to_owned(),
        }),
    };
    told
}

struct Teller<'f> {
    question: Question,
    facts: &'f Facts<'f>,
    shadow: Shadow,
    ends: Ends,
    client: Client,
    entry: Place,
}

impl Teller<'_> {
    fn tell(self, known: Option<ShadowFlow>) -> anyhow::Result<Explanation> {
        let (facts, ends) = (self.facts, &self.ends);
        let mut told = empty(&self.question, facts, ends);
        told.enters = enters(&self.entry);
        told.programs = self.programs(&mut told.problems)?;
        let found = look_up(facts.memory, ends, self.client);
        let is_answer = known.as_ref().is_some_and(|flow| flow.reply);
        told.connection = known.as_ref().map(existing);
        if let Some(frontend) = found.frontend.filter(|_| !is_answer)
            && let Some(service) = facts.service(frontend.service)
        {
            told.service = Some(sentences::matched(service, frontend.kind, found.class, self.client));
            if found.spoofed {
                told.rules.push(Rule {
                    rule: "source",
                    says: "the source is one that nobody in order sends to a Service from".to_owned(),
                });
            }
            told.rules.extend(sentences::of_source_ranges(service, frontend.kind, &found));
            told.rules.push(sentences::of_endpoints(facts, service, found.class));
            told.rules.extend(sentences::of_algorithm(service, found.class));
            let (index, generation) = (service.index, service.policy.generation);
            let held = affinity(facts.maps, ends.from.ip(), index, generation)?;
            let mut sure = known.as_ref().map(|flow| flow.becomes.to);
            if let Some((rule, endpoint)) = sentences::of_affinity(facts, service, found.class, held) {
                self.shadow.copy_affinity(facts.maps, ends.from.ip(), index, generation)?;
                told.rules.push(rule);
                sure = sure.or(endpoint);
            }
            told.rules.push(sentences::of_masquerade(&found, frontend.kind, self.client));
            told.rules.extend(sentences::of_share(facts, index, socket::family(ends))?);
            told.candidates = sentences::candidates(facts, service, found.class, sure);
        }
        self.send(known.as_ref(), &found, &mut told)?;
        Ok(told)
    }

    /// Which programs are asked, and whether they are those that serve.
    fn programs(&self, problems: &mut Vec<String>) -> anyhow::Result<Programs> {
        let hook = self.entry.inward();
        let asked = self.shadow.tag(hook)?;
        let attached = self.facts.attached.devices.get(&(self.entry.interface, hook));
        let attached = attached.map(|(_, program)| program).or_else(|| self.facts.attached.any(hook));
        let tag = attached.map(|program| program.tag());
        match &tag {
            Some(tag) if *tag != asked => problems.push(format!(
                "the attached programs are not this lb-agent's ({} has tag {tag}, not {asked}): another version loaded \
                 them, and may decide otherwise. Ask with its own lb-agent",
                hook.program()
            )),
            _ => {}
        }
        if self.facts.constants.is_none() {
            problems.push(
                "nothing tells what the programs were loaded with: forwarding mode and ports are the defaults".to_owned(),
            );
        }
        if self.entry.via.is_none() {
            problems.push(format!(
                "{} has no programs: its packets are NOT served. What follows is what would happen with them. {}",
                self.entry.name,
                match self.entry.role {
                    Role::Pod => "Does --pod-devices or --pod-bridges match it, and does the agent run?",
                    Role::Net => "Does --net-devices match it, has it an address, and does the agent run?",
                }
            ));
        }
        Ok(Programs { attached: tag, asked: Some(asked), ..programs(self.facts) })
    }

    /// Sends the packet, and an answer back.
    fn send(
        &self,
        known: Option<&ShadowFlow>,
        found: &LookedUp,
        told: &mut Explanation,
    ) -> anyhow::Result<()> {
        let part = if known.is_some() { Part::Later } else { Part::First };
        let sent = packet::frame(&self.ends, part, self.entry.mac);
        let hook = self.entry.inward();
        let ran = self.shadow.run(hook, &sent, self.entry.interface)?;
        let service = told.service.as_ref().map(|matched| matched.service.clone());
        let after = packet::read(&ran.packet);
        if let Some(verdict) = self.ended(&ran, after, service.as_deref(), found) {
            told.steps.push(step("request", hook, &self.entry, &verdict.says, None));
            told.verdict = verdict;
            return Ok(());
        }
        let Some(seen) = after.filter(|seen| seen.ends != self.ends) else {
            told.steps.push(step("request", hook, &self.entry, "lets it pass unchanged", None));
            told.verdict = passed(self.facts, &self.ends, found);
            return Ok(());
        };
        for candidate in &mut told.candidates {
            candidate.chosen = candidate.endpoint == seen.ends.to;
        }
        let flow = self.shadow.flow(&self.ends)?;
        let hairpin = flow.as_ref().is_some_and(|flow| flow.hairpin);
        if hairpin {
            told.rules.push(Rule {
                rule: "hairpin",
                says: "the client chose itself: the packet is turned round at its device, and comes from the Service"
                    .to_owned(),
            });
        }
        let target = facts_of_target(self, &seen, ran.fate, hairpin);
        told.steps.push(step(
            "request",
            hook,
            &self.entry,
            &leaving(ran.fate, &target, hairpin),
            Some(&seen.ends),
        ));
        let (arrived, dropped) = self.leave(&ran, seen, &target, hairpin, "request", &mut told.steps)?;
        if let Some(reason) = dropped {
            told.verdict = stopped(reason, service.as_deref());
            return Ok(());
        }
        let mut says = match told.candidates.iter().filter(|candidate| candidate.probability > 0.0).count() {
            0 | 1 => format!("carried to {}", arrived.to),
            many if told.rules.iter().any(|rule| rule.rule == "maglev") => {
                format!("carried to {}, of {many} endpoints the one that the client's hash says", arrived.to)
            }
            many => format!("carried to one of {many} endpoints by chance, this time to {}", arrived.to),
        };
        if arrived.from != self.ends.from && !hairpin {
            says.push_str(&format!(", which sees {} as the client", arrived.from));
        }
        told.verdict = Verdict { outcome: "carried", reason: None, says, advice: None };
        if known.is_none() && !hairpin {
            self.answer(&arrived, &target, told)?;
        }
        Ok(())
    }

    /// The verdict on a packet that goes no further.
    fn ended(
        &self,
        ran: &Ran,
        after: Option<Seen>,
        service: Option<&str>,
        found: &LookedUp,
    ) -> Option<Verdict> {
        let reason = ran.reasons.first().copied();
        let icmp = after.and_then(|seen| seen.icmp);
        match (ran.fate, reason) {
            (Fate::Pass, _) => None,
            (Fate::Drop, None) => Some(Verdict {
                outcome: "dropped",
                reason: None,
                says: "dropped, and nothing was counted".to_owned(),
                advice: Some("report it with `lb-agent support-bundle`".to_owned()),
            }),
            (Fate::Redirect, None) if self.question.is_ping() => Some(Verdict {
                outcome: "answered",
                reason: None,
                says: "answered by the program itself: the cluster IP has an endpoint (--echo-reply)"
                    .to_owned(),
                advice: None,
            }),
            (Fate::Redirect, None) => None,
            (_, Some(reason)) => {
                let mut verdict = stopped(reason, service);
                if reason == Reason::UnknownPort {
                    name_ports(self.facts, &self.ends, &mut verdict);
                }
                if let Some((kind, code)) = icmp.filter(|_| ran.fate == Fate::Redirect) {
                    verdict
                        .says
                        .push_str(&format!(", with an ICMP error (type {kind}, code {code}) to the client"));
                }
                if found.spoofed && reason == Reason::SpoofedSource {
                    verdict.says.push_str(&format!(" ({})", self.ends.from.ip()));
                }
                Some(verdict)
            }
        }
    }

    /// The device that a rewritten packet leaves by has a program, too.
    fn leave(
        &self,
        ran: &Ran,
        seen: Seen,
        target: &Target,
        hairpin: bool,
        way: &'static str,
        steps: &mut Vec<Step>,
    ) -> anyhow::Result<(Ends, Option<Reason>)> {
        let Target::Device(place) = target else { return Ok((seen.ends, None)) };
        // What is handed into a pod's end, or turned round, meets no further program.
        let meets = !hairpin && (ran.fate == Fate::Pass || place.role == Role::Net) && place.via.is_some();
        if !meets {
            return Ok((seen.ends, None));
        }
        let hook = place.outward();
        let left = self.shadow.run(hook, &ran.packet, place.interface)?;
        if left.fate == Fate::Drop {
            let reason = left.reasons.first().copied().unwrap_or(Reason::TableInconsistent);
            steps.push(step(way, hook, place, &format!("drops it: {}", reason.name()), None));
            return Ok((seen.ends, Some(reason)));
        }
        let after = packet::read(&left.packet).map_or(seen.ends, |seen| seen.ends);
        if after != seen.ends {
            let does = if way == "request" {
                "gives it an address of this node as its source"
            } else {
                "gives it the Service's address as its source"
            };
            steps.push(step(way, hook, place, does, Some(&after)));
        }
        Ok((after, None))
    }

    /// Sends the endpoint's first answer, and tells where it comes out: that is as important as the way there.
    fn answer(&self, arrived: &Ends, target: &Target, told: &mut Explanation) -> anyhow::Result<()> {
        let Target::Device(place) = target else { return Ok(()) };
        let answer = Ends { from: arrived.to, to: arrived.from, protocol: arrived.protocol };
        let sent = packet::frame(&answer, Part::Answer, place.mac);
        let hook = place.inward();
        let ran = if place.via.is_some() {
            self.shadow.run(hook, &sent, place.interface)?
        } else {
            Ran { fate: Fate::Pass, packet: sent, reasons: Vec::new() }
        };
        let seen = packet::read(&ran.packet).filter(|_| ran.fate != Fate::Drop);
        let Some(seen) = seen else {
            let reason = ran.reasons.first().map_or("nothing counted", |reason| reason.name());
            told.steps.push(step("answer", hook, place, &format!("drops it: {reason}"), None));
            told.problems.push(format!("the endpoint's answers are dropped at {}", place.name));
            return Ok(());
        };
        let back = Target::Device(self.entry.clone());
        if seen.ends != answer || ran.fate == Fate::Redirect {
            told.steps.push(step("answer", hook, place, &leaving(ran.fate, &back, false), Some(&seen.ends)));
        }
        let (out, _) = self.leave(&ran, seen, &back, false, "answer", &mut told.steps)?;
        if (out.from, out.to) != (self.ends.to, self.ends.from) {
            told.problems.push(format!(
                "the endpoint's answers reach the client as {} -> {}, not from {}: the client does not know them. Are all \
                 devices on the way back served?",
                out.from, out.to, self.ends.to
            ));
        }
        Ok(())
    }
}

/// Where a rewritten packet goes.
enum Target {
    /// To a process of this node.
    Host,
    /// Out of a device.
    Device(Place),
    /// Where the host's routing says.
    Unknown,
}

fn facts_of_target(teller: &Teller<'_>, seen: &Seen, fate: Fate, hairpin: bool) -> Target {
    if hairpin {
        return Target::Device(teller.entry.clone());
    }
    let node = &teller.facts.node;
    let by_table = || {
        let to = seen.ends.to;
        let is_it = |backend: &&crate::apply::BackendView| {
            (backend.address, backend.port) == (to.ip(), to.port()) && backend.interface != 0
        };
        teller
            .facts
            .view
            .backends
            .iter()
            .find(is_it)
            .map(|backend| node.place(backend.interface, Some(backend.mac)))
    };
    if fate == Fate::Redirect
        && let Some(place) = by_table()
    {
        return Target::Device(place);
    }
    match node.locate(seen.ends.to.ip()) {
        Located::Here => Target::Host,
        Located::Behind(place) => Target::Device(place),
        Located::Unknown => Target::Unknown,
    }
}

/// How a rewritten packet goes on.
fn leaving(fate: Fate, target: &Target, hairpin: bool) -> String {
    match (fate, target, hairpin) {
        (_, _, true) => "rewrites it and sends it back to the pod".to_owned(),
        (Fate::Redirect, Target::Device(place), _) if place.role == Role::Pod => {
            format!("rewrites it and hands it straight into the pod behind {}", place.name)
        }
        (Fate::Redirect, Target::Device(place), _) => {
            format!("rewrites it and sends it straight out of {}", place.name)
        }
        (_, Target::Host, _) => "rewrites it; the host's stack gives it to a process of this node".to_owned(),
        (_, Target::Device(place), _) => {
            format!("rewrites it; the host's stack (with its netfilter rules) routes it to {}", place.name)
        }
        (_, Target::Unknown, _) => {
            "rewrites it; the host's stack routes it (`ip route get` tells where)".to_owned()
        }
    }
}

fn step(way: &'static str, hook: Hook, place: &Place, does: &str, packet: Option<&Ends>) -> Step {
    Step {
        way,
        at: format!("{} at {}", hook.program(), place.name),
        does: does.to_owned(),
        packet: packet.map(|ends| (ends.from, ends.to)),
    }
}

fn enters(place: &Place) -> Enters {
    let (at, what) = match place.role {
        Role::Pod => ("pod", "a pod of this node"),
        Role::Net => ("network", "hosts outside this node"),
    };
    let how = match place.via {
        Some(Via::Tcx) => "attached through TCX",
        Some(Via::Tc) => "attached as a traffic control filter",
        None => "NOT ATTACHED",
    };
    let program = place.inward().program();
    let (device, interface) = (&place.name, place.interface);
    Enters {
        at,
        device: Some(device.clone()),
        interface: Some(interface),
        program,
        attached: place.via.is_some(),
        says: format!("{device} (interface {interface}), which leads to {what}; {program} is {how}"),
    }
}

fn existing(flow: &ShadowFlow) -> Existing {
    let what =
        if flow.reply { "these are the answers of a connection" } else { "it belongs to a connection" };
    Existing {
        state: flow.state.name(),
        endpoint: if flow.reply { flow.becomes.from } else { flow.becomes.to },
        age_seconds: flow.age,
        idle_seconds: flow.idle,
        says: format!(
            "{what} that is {} s old, {}, last seen {} s ago: nothing is chosen anew while it stands",
            flow.age,
            flow.state.name(),
            flow.idle
        ),
    }
}

/// The programs, as far as their constants tell.
pub(super) fn programs(facts: &Facts<'_>) -> Programs {
    let forwarding = facts.constants.as_ref().and_then(|constants| constants.word("FORWARDING"));
    Programs {
        forwarding: forwarding.map(|number| if number == 0 { "stack" } else { "redirect" }),
        ..Programs::default()
    }
}

/// An explanation that says nothing yet.
pub(super) fn empty(question: &Question, facts: &Facts<'_>, ends: &Ends) -> Explanation {
    Explanation {
        from: ends.from,
        to: ends.to,
        protocol: if question.is_ping() { "ICMP".to_owned() } else { protocol_name(ends.protocol) },
        programs: programs(facts),
        enters: Enters {
            at: "network",
            device: None,
            interface: None,
            program: Hook::FromNet.program(),
            attached: false,
            says: "nowhere".to_owned(),
        },
        service: None,
        connection: None,
        rules: Vec::new(),
        candidates: Vec::new(),
        steps: Vec::new(),
        verdict: Verdict { outcome: "passed", reason: None, says: String::new(), advice: None },
        problems: Vec::new(),
    }
}

/// The verdict on a packet that a program stops.
pub(super) fn stopped(reason: Reason, service: Option<&str>) -> Verdict {
    let meaning = reason.meaning();
    let outcome = if meaning.starts_with("refused") { "refused" } else { "dropped" };
    Verdict {
        outcome,
        reason: Some(reason.name()),
        says: meaning.to_owned(),
        advice: Some(advice::about(reason, service)),
    }
}

/// Adds which ports the address has.
pub(super) fn name_ports(facts: &Facts<'_>, ends: &Ends, verdict: &mut Verdict) {
    let ports = sentences::ports_at(facts, ends.to.ip());
    if !ports.is_empty() {
        verdict.advice = Some(format!("{} has the ports {}", ends.to.ip(), ports.join(", ")));
    }
}

/// The verdict on a packet that is none of our business.
pub(super) fn passed(facts: &Facts<'_>, ends: &Ends, found: &LookedUp) -> Verdict {
    let address = ends.to.ip();
    let node_port = facts.view.services.iter().find(|service| {
        service.frontends.iter().any(|frontend| {
            frontend.kind == FrontendKind::NodePort
                && (frontend.port, frontend.protocol) == (ends.to.port(), ends.protocol)
        })
    });
    let ports = sentences::ports_at(facts, address);
    let advice = match (node_port, found.node_address) {
        (Some(service), false) => {
            let name = crate::observe::name_of(service.key.as_ref());
            let at: Vec<String> = facts
                .view
                .node_addresses
                .iter()
                .filter(|node| node.is_ipv4() == address.is_ipv4())
                .map(IpAddr::to_string)
                .collect();
            Some(format!(
                "it is the node port of {name}, but {address} is no address that this node serves node ports at: {} \
                 (--node-port-addresses)",
                if at.is_empty() { "there are none of that family".to_owned() } else { at.join(", ") }
            ))
        }
        _ if !ports.is_empty() => Some(format!("{address} has the ports {}", ports.join(", "))),
        _ if found.unserved == Unserved::NotOurs => Some(
            "if it ought to be a Service: is it of another family or protocol, in `lb-agent services`, and does \
             `lb-agent status` say that the agent is well?"
                .to_owned(),
        ),
        _ => None,
    };
    Verdict {
        outcome: "passed",
        reason: None,
        says: "no Service has that address, port and protocol: nothing is translated, the host routes it"
            .to_owned(),
        advice,
    }
}
