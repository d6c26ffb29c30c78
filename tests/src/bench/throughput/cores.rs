//! What a second CPU adds: the program for packets of pods on two CPUs at once, each with a flow of its own.

use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use lb_common::layout::{BackendFlags, Forwarding, FrontendKind, ServiceVerdict};
use lb_common::proto::{self, tcp};

use crate::bench::report::{Row, ratios};
use crate::bench::{Options, progress};
use crate::datapath::packet::Packet;
use crate::datapath::{BackendSpec, Datapath, Program, cpus, pin_to};

/// Its name in filters.
pub(super) const NAME: &str = "tc, established flows";
/// Packets a flow and round.
const PACKETS: u32 = 2_000_000;
const QUICK_PACKETS: u32 = 500_000;

/// Packets a second on one CPU and on two.
pub(super) fn measure(options: &Options, rounds: usize) -> Result<Vec<Row>> {
    let packets = if options.quick { QUICK_PACKETS } else { PACKETS };
    let all = cpus();
    let Some(cpus) = all.get(..2) else {
        progress("one CPU only: what a second one adds cannot be measured");
        return Ok(Vec::new());
    };
    let mut datapath = Datapath::load(Forwarding::Stack)?;
    // Packets become what they are, so that each can be sent through again and again.
    let frontend: SocketAddr = "10.96.0.1:80".parse()?;
    let flags = BackendFlags::SERVING | BackendFlags::LOCAL;
    let service = datapath.empty_service();
    let spec = BackendSpec { endpoint: frontend, flags, interface: 1, mac: [2, 0, 0, 0, 0, 2] };
    let backend = datapath.backend(service, &spec)?;
    datapath.publish(service, ServiceVerdict::Random, &[backend])?;
    datapath.frontend(frontend, proto::TCP, service, FrontendKind::ClusterIp)?;
    let flow = |number: u16| -> Result<Vec<u8>> {
        let client = SocketAddr::from(([10, 1, 0, 1], 40_000 + number));
        let request = |flags| Packet::new(proto::TCP, client, frontend, flags).bytes();
        let answer = Packet::new(proto::TCP, frontend, client, tcp::SYN | tcp::ACK).bytes();
        datapath.run(Program::FromPod, &request(tcp::SYN))?;
        datapath.run(Program::ToPod, &answer)?;
        let packet = request(tcp::ACK);
        for _ in 0..2 {
            let outcome = datapath.run(Program::FromPod, &packet)?;
            ensure!(outcome.packet == packet, "the packet does not stay as it is: {:?}", outcome.verdict);
        }
        Ok(packet)
    };
    let flows = [flow(0)?, flow(1)?];
    let program = datapath.program(Program::FromPod)?;
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let alone: f64 = [0, 1]
            .iter()
            .map(|i| rates(program, &[cpus[*i]], &flows[*i..=*i], packets))
            .sum::<Result<f64>>()?;
        one.push(alone / 2.0);
        two.push(rates(program, cpus, &flows, packets)?);
        progress(format_args!("{NAME}: round {} of {rounds}", round + 1));
    }
    let row =
        |name: &str, figures: &[f64]| Row::new(format!("{NAME}, {name}"), "Mpps", figures).higher_is_better();
    Ok(vec![row("one CPU", &one), row("two CPUs", &two).ratios("one CPU", &ratios(&two, &one)).goal("D11")])
}

/// Million packets a second, of as many threads as there are CPUs given, all at the same time.
fn rates(program: &SchedClassifier, cpus: &[usize], flows: &[Vec<u8>], packets: u32) -> Result<f64> {
    let barrier = Barrier::new(cpus.len());
    thread::scope(|scope| {
        let threads: Vec<_> = cpus
            .iter()
            .zip(flows)
            .map(|(cpu, packet)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    pin_to(*cpu);
                    // Into this CPU's flow cache.
                    repeat(program, packet, 1000)?;
                    barrier.wait();
                    repeat(program, packet, packets)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().ok().context("a thread panicked")?).sum()
    })
}

/// Million packets a second, by the clock of this thread: the kernel's own figure is whole nanoseconds.
fn repeat(program: &SchedClassifier, packet: &[u8], repeat: u32) -> Result<f64> {
    let options = TestRunOptions { data_in: Some(packet), repeat, ..TestRunOptions::default() };
    let begin = Instant::now();
    program.test_run(options)?;
    Ok(f64::from(repeat) / 1e6 / begin.elapsed().as_secs_f64())
}
