//! Processes whose sockets are translated when they connect. The kernel runs no program of this kind on request: the tables
//! are asked by the same look-up that the programs use.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::layout::{Client, Policy};
use lb_common::lookup::Unserved;
use lb_common::proto;
use lb_common::reason::Reason;

use super::lookup::{LookedUp, look_up};
use super::{Enters, Explanation, Facts, Programs, Question, Rule, Step, Verdict, sentences, story};
use crate::dataplane::{Ends, SocketHook, affinity};
use crate::model::Family;

/// The hook of a `connect` to that destination.
pub(super) const fn hook(v6: bool) -> SocketHook {
    if v6 { SocketHook::Connect6 } else { SocketHook::Connect4 }
}

/// True when such calls are translated, of that kind of client.
pub(super) fn serves(facts: &Facts<'_>, client: Client, ends: &Ends) -> bool {
    let attached = facts.attached.sockets.contains_key(&hook(ends.to.is_ipv6()));
    let pods = facts.constants.as_ref().and_then(|constants| constants.word("SOCKET_PODS")) == Some(1);
    let carried = matches!(ends.protocol, proto::TCP | proto::UDP);
    attached && carried && (client == Client::Host || (client == Client::Pod && pods))
}

/// Explains the call of a process of the node, or with `--socket-lb=all` of a pod.
pub(super) fn tell(
    question: &Question,
    facts: &Facts<'_>,
    ends: &Ends,
    client: Client,
) -> anyhow::Result<Explanation> {
    let found = look_up(facts.memory, ends, client);
    let hook = hook(ends.to.is_ipv6());
    let tag = facts.attached.sockets.get(&hook).map(|program| program.tag());
    let whose = if client == Client::Host { "of this node" } else { "in a pod (--socket-lb=all)" };
    let mut told = Explanation {
        programs: Programs { attached: tag, asked: None, ..story::programs(facts) },
        enters: Enters {
            at: "socket",
            device: None,
            interface: None,
            program: hook.program(),
            attached: true,
            says: format!(
                "when a process {whose} calls connect or sendto: {} at the cgroup. (The kernel runs no such program on \
                 request; the tables were asked with the same look-up)",
                hook.program()
            ),
        },
        ..story::empty(question, facts, ends)
    };
    let Some(frontend) = found.frontend else {
        told.verdict = without_service(facts, ends, &found);
        return Ok(told);
    };
    let Some(service) = facts.service(frontend.service) else {
        told.verdict = story::stopped(Reason::TableInconsistent, None);
        return Ok(told);
    };
    let matched = sentences::matched(service, frontend.kind, found.class, client);
    let name = matched.service.clone();
    told.service = Some(matched);
    told.rules.extend(sentences::of_source_ranges(service, frontend.kind, &found));
    told.rules.push(sentences::of_endpoints(facts, service, found.class));
    let mut sure = None;
    if client == Client::Host {
        let key = match ends.to.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let held = affinity(facts.maps, key, service.index, service.policy.generation)?;
        if let Some((rule, endpoint)) = sentences::of_affinity(facts, service, found.class, held) {
            told.rules.push(rule);
            sure = endpoint;
        }
        told.rules.push(sentences::of_masquerade(&found, frontend.kind, client));
    } else if service.policy.affinity_timeout != 0 {
        told.rules.push(Rule {
            rule: "affinity",
            says: "a pod's affinity goes by its network namespace, which its address does not tell"
                .to_owned(),
        });
    }
    if ends.protocol == proto::UDP {
        told.rules.push(Rule {
            rule: "datagrams",
            says: "a socket's datagrams to one address stay with one endpoint while it serves".to_owned(),
        });
    }
    told.candidates = sentences::candidates(facts, service, found.class, sure);
    told.verdict = verdict(&told, &found, &name, client, service.class(found.class).verdict);
    if told.verdict.outcome == "carried" {
        told.steps.push(Step {
            way: "request",
            at: format!("{} at the cgroup", hook.program()),
            does: "gives the socket the endpoint's address; its packets are not touched, and getpeername shows the \
                   Service's"
                .to_owned(),
            packet: None,
        });
    }
    Ok(told)
}

fn verdict(told: &Explanation, found: &LookedUp, name: &str, client: Client, verdict: &str) -> Verdict {
    if !found.admitted && found.policy.flags & Policy::SOURCE_RANGES != 0 && client == Client::Host {
        return call_fails(Reason::SourceNotAllowed, Some(name));
    }
    match verdict {
        "random" | "maglev" => {
            let says = match told.candidates.iter().filter(|candidate| candidate.probability > 0.0).count() {
                1 => {
                    told.candidates.first().map_or_else(String::new, |it| format!("goes to {}", it.endpoint))
                }
                many => format!("goes to one of {many} endpoints, by chance"),
            };
            Verdict { outcome: "carried", reason: None, says, advice: None }
        }
        "reject" => call_fails(Reason::NoEndpoint, Some(name)),
        "drop" => call_fails(Reason::NoLocalEndpoint, Some(name)),
        _ => call_fails(Reason::TableInconsistent, Some(name)),
    }
}

/// The verdict on an address and port that no Service has.
fn without_service(facts: &Facts<'_>, ends: &Ends, found: &LookedUp) -> Verdict {
    match found.unserved {
        Unserved::UnknownPort => {
            let mut verdict = call_fails(Reason::UnknownPort, None);
            story::name_ports(facts, ends, &mut verdict);
            verdict
        }
        Unserved::Unallocated => call_fails(Reason::UnallocatedAddress, None),
        Unserved::NotOurs => story::passed(facts, ends, found),
    }
}

/// A call that fails: what packets would silently disappear for ends at once, as a timeout.
fn call_fails(reason: Reason, service: Option<&str>) -> Verdict {
    let mut verdict = story::stopped(reason, service);
    let error = if verdict.outcome == "refused" { "ECONNREFUSED" } else { "ETIMEDOUT, at once" };
    verdict.says = format!("{}: the call fails with {error}", verdict.says);
    verdict
}

/// The family of a destination.
pub(super) const fn family(ends: &Ends) -> Family {
    if ends.to.is_ipv6() { Family::V6 } else { Family::V4 }
}
