//! Bulk transfers, both ends on one CPU: what a byte costs.

use std::time::Duration;

use anyhow::Result;

use crate::bench::balancer::{Balancer, Forwarding};
use crate::bench::report::{Row, ratios};
use crate::bench::stand::{Cpus, From, Stand};
use crate::bench::traffic::Kind;
use crate::bench::{Options, progress, waited};

const KINDS: [Kind; 2] = [Kind::Stream, Kind::DatagramStream];

const BALANCERS: [Balancer; 7] = [
    Balancer::None,
    Balancer::None,
    Balancer::Iptables(1),
    Balancer::Nftables(1),
    Balancer::Agent(Forwarding::Stack, 1),
    Balancer::Agent(Forwarding::Redirect, 1),
    Balancer::Sockets(1),
];

/// A transfer through a balancer, and its bytes a second, one figure a round.
struct Case {
    kind: Kind,
    entrant: usize,
    name: String,
    rates: Vec<f64>,
}

/// Pod to pod, everything once a round.
pub(super) fn measure(options: &Options, rounds: usize) -> Result<Vec<Row>> {
    let slice = Duration::from_millis(if options.quick { 60 } else { 250 });
    let mut cases = cases(options);
    if cases.is_empty() {
        return Ok(Vec::new());
    }
    let mut stand = Stand::build(&BALANCERS, Cpus::same(), &|what: &str| progress(what))?;
    for round in 0..rounds {
        waited("bulk transfers", || -> Result<()> {
            for group in cases.chunk_by_mut(|one, next| one.kind == next.kind) {
                let count = group.len();
                for step in 0..count {
                    let case = &mut group[(round + step) % count];
                    let entrant = &mut stand.entrants[case.entrant];
                    case.rates.push(entrant.measure(From::Pod, case.kind, slice, false)?.rate);
                }
            }
            Ok(())
        })?;
        progress(format_args!("bulk transfers: round {} of {rounds}", round + 1));
    }
    let mut rows = Vec::new();
    for group in cases.chunk_by(|one, next| one.kind == next.kind) {
        for case in group {
            let gigabits: Vec<f64> = case.rates.iter().map(|rate| rate * 8.0 / 1e9).collect();
            let row = Row::new(&case.name, "Gbit/s", &gigabits)
                .higher_is_better()
                .ratios("no load balancer", &ratios(&case.rates, &group[0].rates));
            let redirect = matches!(BALANCERS[case.entrant], Balancer::Agent(Forwarding::Redirect, _));
            rows.push(if redirect { row.goal("S10") } else { row });
        }
    }
    Ok(rows)
}

fn cases(options: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        let named = |(entrant, balancer): (usize, &Balancer)| {
            // The second node without one shows what nodes differ by.
            let again = if entrant == 1 { ", again" } else { "" };
            let name = format!("{}, {}: {balancer}{again}", From::Pod, kind.name());
            Case { kind, entrant, name, rates: Vec::new() }
        };
        let mut group: Vec<Case> = BALANCERS.iter().enumerate().map(named).collect();
        // The first one is what all are compared with.
        if group.iter().any(|case| options.wants(&case.name)) {
            group.retain(|case| case.entrant == 0 || options.wants(&case.name));
            cases.append(&mut group);
        }
    }
    cases
}
