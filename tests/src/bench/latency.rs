//! `latency`: what a Service costs a client, beside the same pods without one and beside kube-proxy's rules.
//!
//! Everything that is compared stands at the same time, each on a node of its own, and is measured in turn for a moment. Client
//! and server share a CPU: a figure is then what a transaction costs, wherever that is spent, and no waking of another CPU.

mod findings;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use self::findings::Case;
use super::balancer::{Balancer, Forwarding};
use super::report::Report;
use super::stand::{Cpus, From, Stand};
use super::traffic::Kind;
use super::{Options, progress, waited};

const KINDS: [Kind; 4] = [Kind::Requests, Kind::Connections, Kind::Datagrams, Kind::NewFlows];

/// How long everything is measured in a round.
const SLICE: Duration = Duration::from_millis(60);
const QUICK_SLICE: Duration = Duration::from_millis(30);

/// Measures.
///
/// # Errors
/// Not root, something is missing, or a connection failed.
pub fn run(options: &Options) -> Result<Report> {
    let begin = Instant::now();
    let sizes: &[u32] = if options.quick { &[1, 1000] } else { &[1, 1000, 10_000] };
    let slice = if options.quick { QUICK_SLICE } else { SLICE };
    let balancers = balancers(sizes);
    let mut cases = cases(&balancers, options);
    ensure!(!cases.is_empty(), "no case has {:?} in its name", options.filter);
    let told = |what: &str| progress(format_args!("{:6.1} s  {what}", begin.elapsed().as_secs_f64()));
    let mut stand = Stand::build(&balancers, Cpus::same(), &told)?;
    let rounds = options.rounds(15, 5);
    for round in 0..rounds {
        let name = format!("round {} of {rounds}", round + 1);
        // What is compared is measured one after another, and another one begins in each round.
        waited(&name, || -> Result<()> {
            for group in cases.chunk_by_mut(|one, next| (one.from, one.kind) == (next.from, next.kind)) {
                let count = group.len();
                for step in 0..count {
                    let case = &mut group[(round + step) % count];
                    let entrant = &mut stand.entrants[case.entrant];
                    case.measured.push(entrant.measure(case.from, case.kind, slice, case.past)?);
                }
            }
            Ok(())
        })?;
        told(&name);
    }
    Ok(Report::new("latency", rounds, findings::rows(&cases)))
}

/// What is compared, the same thing without a load balancer twice: what those two differ by is what nodes differ by.
fn balancers(sizes: &[u32]) -> Vec<Balancer> {
    let mut all = vec![Balancer::None, Balancer::None];
    all.extend(sizes.iter().map(|size| Balancer::Iptables(*size)));
    all.extend(sizes.iter().map(|size| Balancer::Nftables(*size)));
    let ends = [sizes[0], sizes[sizes.len() - 1]];
    all.extend(ends.map(|size| Balancer::Agent(Forwarding::Stack, size)));
    all.extend(ends.map(|size| Balancer::Agent(Forwarding::Redirect, size)));
    all.extend(ends.map(Balancer::Sockets));
    all
}

/// Every way from every place, what is compared side by side.
fn cases(balancers: &[Balancer], options: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for from in [From::Pod, From::Node] {
        for kind in KINDS {
            let mut group: Vec<Case> = balancers
                .iter()
                .enumerate()
                .filter(|(_, balancer)| applies(from, **balancer))
                .map(|(entrant, balancer)| Case::new(from, kind, *balancer, entrant))
                .collect();
            let one = balancers.iter().enumerate().filter(|(_, balancer)| balancer.services() == 1);
            group.extend(
                one.filter(|(_, balancer)| applies(from, **balancer))
                    .map(|(entrant, balancer)| Case::new(from, kind, *balancer, entrant).past()),
            );
            // The first one is what all are compared with.
            if group.iter().any(|case| options.wants(&case.name())) {
                let mut first = true;
                group.retain(|case| std::mem::take(&mut first) || options.wants(&case.name()));
                cases.append(&mut group);
            }
        }
    }
    cases
}

/// Whether a way of serving is a way of its own for clients at that place.
fn applies(from: From, balancer: Balancer) -> bool {
    // Clients on the node are translated when they connect, whatever the forwarding.
    from == From::Pod || !matches!(balancer, Balancer::Agent(Forwarding::Redirect, _) | Balancer::Sockets(_))
}
