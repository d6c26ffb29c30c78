//! `packet`: what a packet costs in each program, against reference programs in the same run.
//!
//! The kernel repeats a program on one packet and does not put the packet back. So established flows are those of Services
//! whose endpoint is the frontend itself: everything is done that always is, and the packet stays as it was. Packets that
//! change tables are run once each. An empty program, measured in every round and either way, is what measuring costs.

mod cases;
mod reference;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use lb_common::layout::Forwarding;

use self::cases::Packets;
use self::reference::Reference;
use super::report::{PathLength, Report, Row, Spread};
use super::{Options, progress};
use crate::datapath::path::Paths;
use crate::datapath::{Datapath, pin};

/// Runs of a program in a round, on one packet.
const REPEAT: u32 = 100_000;

/// A case, and what each round said.
struct Measured {
    case: String,
    reference: &'static str,
    times: Vec<f64>,
    ratios: Vec<f64>,
    path: Option<PathLength>,
}

/// Measures every case in every round.
///
/// # Errors
/// When the programs cannot be loaded, or do something else with a packet than its case says.
pub fn run(options: &Options) -> Result<Report> {
    let rounds = options.rounds(11, 3);
    pin();
    let reference = Reference::load()?;
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
    ensure!(modes.iter().any(|(_, cases)| !cases.is_empty()), "no case has {:?} in its name", options.filter);
    let mut measured: Vec<Measured> = Vec::new();
    for round in 0..rounds {
        let mut index = 0;
        for (datapath, cases) in &mut modes {
            for case in cases {
                let (name, base) = match case.packets {
                    Packets::Same(_) => ("hash_lookups", reference.repeated(REPEAT)?),
                    Packets::New(_) => ("lru_insert", reference.once()?),
                };
                let time = match &mut case.packets {
                    Packets::Same(packet) => {
                        repeat(datapath.program(case.program)?, packet, REPEAT)? - base.empty
                    }
                    Packets::New(packets) => {
                        once(datapath.program(case.program)?, packets.next_round())? - base.empty
                    }
                };
                if round == 0 {
                    let (case, path) = (case.name.clone(), case.path.clone());
                    measured.push(Measured {
                        case,
                        reference: name,
                        times: Vec::new(),
                        ratios: Vec::new(),
                        path,
                    });
                }
                measured[index].times.push(time);
                measured[index].ratios.push(time / base.reference);
                index += 1;
            }
        }
        progress(format_args!("round {} of {rounds} done", round + 1));
    }
    let rows = measured.into_iter().map(|Measured { case, reference, times, ratios, path }| {
        Row::new(case, "ns", &times).ratios(reference, &ratios).path(path)
    });
    Ok(Report::new("packet", rounds, rows.collect()))
}

/// Nanoseconds a run, of many on the same packet.
fn repeat(program: &SchedClassifier, packet: &[u8], repeat: u32) -> Result<f64> {
    let options = TestRunOptions { data_in: Some(packet), repeat, ..TestRunOptions::default() };
    // The kernel's figure is whole nanoseconds a run, which is exact enough for a ratio of tens.
    Ok(program.test_run(options)?.duration.as_nanos() as f64)
}

/// Median of the nanoseconds of one run on each packet, two looks at the clock included.
fn once(program: &SchedClassifier, packets: &[Vec<u8>]) -> Result<f64> {
    let times = packets.iter().map(|packet| repeat(program, packet, 1)).collect::<Result<Vec<_>>>()?;
    Ok(Spread::of(times).median)
}
