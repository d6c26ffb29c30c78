//! `packet`: what a packet costs in each program, against reference programs in the same run.
//!
//! The kernel repeats a program on one packet and does not put the packet back. For XDP a program in front does. Established flows
//! of the stack's programs are those of Services whose endpoint is the frontend itself: everything is done that always is, and
//! the packet stays as it was. Packets that change tables are run once each. An empty program, measured in every round and
//! either way, is what measuring costs.

mod cases;
mod clock;
mod findings;
mod flood;
mod many;
mod reference;
mod wire;

use anyhow::{Context as _, Result, ensure};
use lb_common::layout::Forwarding;

use self::cases::{Case, Packets};
use self::clock::{once, repeat};
use self::findings::{INSERT, LOOKUPS, Samples};
use self::many::Many;
use self::reference::Reference;
use self::wire::Wire;
use super::report::Report;
use super::{Options, progress};
use crate::datapath::path::Paths;
use crate::datapath::{Datapath, pin};

/// Runs of a program in a round, on one packet.
const REPEAT: u32 = 100_000;

/// Measures every case in every round.
///
/// # Errors
/// When the programs cannot be loaded, or do something else with a packet than its case says.
pub fn run(options: &Options) -> Result<Report> {
    let rounds = options.rounds(11, 3);
    pin();
    let mut reference = Reference::load()?;
    let mut modes = Vec::new();
    for forwarding in [Forwarding::Stack, Forwarding::Redirect] {
        let mut datapath = Datapath::load(forwarding)?;
        let paths = Paths::read(forwarding)?;
        let mut cases = cases::all(&mut datapath, forwarding)?;
        cases.retain(|case| options.wants(&case.name));
        for case in &mut cases {
            case.check(&mut datapath, &paths).with_context(|| case.name.clone())?;
        }
        modes.push((datapath, cases));
    }
    let mut many = Many::prepare(options)?;
    let wire = Wire::prepare(&mut reference, options)?;
    let mut samples = Samples::default();
    for round in 0..rounds {
        let repeated = reference.repeated(REPEAT)?;
        let single = reference.once()?;
        samples.add(LOOKUPS, repeated.reference, None);
        samples.add(INSERT, single.reference, None);
        for (datapath, cases) in &mut modes {
            for case in cases {
                measure(datapath, case, &reference, &mut samples)?;
            }
        }
        many.measure(&reference, &mut samples)?;
        wire.measure(&mut reference, &mut samples)?;
        progress(format_args!("round {} of {rounds} done", round + 1));
    }
    for case in modes.iter().flat_map(|(_, cases)| cases) {
        samples.path(&case.name, &case.path);
    }
    let mut rows = samples.rows();
    rows.extend(flood::run(options)?);
    rows.retain(|row| options.wants(&row.case) || [LOOKUPS, INSERT].contains(&row.case.as_str()));
    ensure!(rows.len() > 2, "no case has {:?} in its name", options.filter);
    Ok(Report::new("packet", rounds, rows))
}

/// A case once, right after what it is compared with.
fn measure(datapath: &Datapath, case: &mut Case, reference: &Reference, samples: &mut Samples) -> Result<()> {
    let program = datapath.program(case.program)?;
    let (base, time, name) = match &mut case.packets {
        Packets::Same(packet) => {
            let base = reference.repeated(REPEAT)?;
            (base, repeat(program, packet, None, REPEAT)?.0, LOOKUPS)
        }
        Packets::New(packets) => {
            let base = reference.once()?;
            (base, once(program, packets.next_round())?, INSERT)
        }
    };
    samples.add(&case.name, time - base.empty, Some((name, base.reference)));
    Ok(())
}
