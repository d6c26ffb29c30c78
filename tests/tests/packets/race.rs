//! The same new flow on two CPUs at the same moment: one choice holds for both.

use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;

use lb_common::layout::{Client, FrontendKind, ServiceVerdict};
use lb_tests::datapath::case::everywhere;
use lb_tests::datapath::journey::Site;
use lb_tests::datapath::packet::Packet;
use lb_tests::datapath::{Outcome, Program, cpus, pin_to};

/// Flows that begin on two CPUs at once, in each circumstance.
const FLOWS: u16 = 500;

#[test]
fn the_first_cpu_to_begin_a_flow_decides() {
    // Before the first case pins this thread to one CPU.
    let cpus = cpus();
    everywhere(|world| {
        let endpoints: Vec<_> = (0..8).map(|_| world.endpoint(8080)).collect();
        let client = world.address();
        let vip = SocketAddr::new(world.address(), 80);
        let service = world.datapath.service(vip, world.protocol, ServiceVerdict::Random, &endpoints)?;
        let backend = world.datapath.next_backend() - 8;
        let before = world.datapath.counters(service, backend)?;
        let entries = world.datapath.entries()?.len();
        let (protocol, first) = (world.protocol, world.first());
        let (datapath, barrier) = (&world.datapath, Barrier::new(2));
        let begin = |cpu: usize| -> Vec<Outcome> {
            pin_to(cpu);
            let packet = |port| Packet::new(protocol, SocketAddr::new(client, port), vip, first).bytes();
            let packets: Vec<_> = (10_000..10_000 + FLOWS).map(packet).collect();
            let run = |packet: &Vec<u8>| {
                barrier.wait();
                datapath.run(Program::FromPod, packet).expect("a run")
            };
            packets.iter().map(run).collect()
        };
        let (one, two) = thread::scope(|scope| {
            let begin = &begin;
            let one = scope.spawn(|| begin(cpus[0]));
            let two = scope.spawn(|| begin(cpus[cpus.len() - 1]));
            (one.join().expect("no panic"), two.join().expect("no panic"))
        });
        assert_eq!(one, two);
        let counted = world.datapath.counters(service, backend)?.since(&before);
        let count = |name: &str| counted.get(&format!("service {service} {name}")).copied().unwrap_or(0);
        let flows = u64::from(FLOWS);
        assert_eq!((count("Connections"), count("Packets")), (flows, 2 * flows), "{counted:?}");
        let opened =
            counted.iter().filter(|(name, _)| name.starts_with("backend") && name.ends_with("Connections"));
        assert_eq!(opened.map(|(_, count)| count).sum::<u64>(), flows, "{counted:?}");
        assert!(!counted.keys().any(|name| !name.contains(' ')), "a packet was dropped: {counted:?}");
        assert_eq!(world.datapath.entries()?.len() - entries, 2 * usize::from(FLOWS), "entries left over");
        Ok(())
    });
}

#[test]
fn the_first_cpu_to_masquerade_a_flow_decides_and_no_two_flows_share_a_port() {
    let cpus = cpus();
    everywhere(|world| {
        let journey = world.journey(FrontendKind::NodePort, Client::Outside, Site::Beyond, 0)?;
        let (vip, endpoint) = (journey.flow.vip, journey.flow.endpoint);
        // Half of the clients have the same port, which only one of them can keep.
        let clients: Vec<SocketAddr> = (0..200)
            .map(|number| {
                SocketAddr::new(
                    world.host(20 + number),
                    if number % 2 == 0 { 41_000 } else { 42_000 + u16::from(number) },
                )
            })
            .collect();
        let (protocol, first) = (world.protocol, world.first());
        let (datapath, barrier) = (&world.datapath, Barrier::new(2));
        let begin = |cpu: usize| -> Vec<Outcome> {
            pin_to(cpu);
            let run = |client: &SocketAddr| {
                barrier.wait();
                let packet = Packet::new(protocol, *client, vip, first);
                datapath.run(Program::FromNet, &packet.bytes()).expect("a run");
                barrier.wait();
                datapath.run(Program::ToNet, &packet.between(*client, endpoint).bytes()).expect("a run")
            };
            clients.iter().map(run).collect()
        };
        let (one, two) = thread::scope(|scope| {
            let begin = &begin;
            let one = scope.spawn(|| begin(cpus[0]));
            let two = scope.spawn(|| begin(cpus[cpus.len() - 1]));
            (one.join().expect("no panic"), two.join().expect("no panic"))
        });
        assert_eq!(one, two, "one flow with two sources");
        let entries = world.datapath.entries()?;
        let of_service = entries.iter().filter(|entry| entry.service == journey.flow.service);
        let mut sources = Vec::new();
        let mut count = 0;
        for entry in of_service {
            count += 1;
            assert!(entries.iter().any(|other| other.key == entry.other()), "half of a pair: {entry:?}");
            if entry.source && !entry.reply {
                sources.push(entry.becomes.src);
            }
        }
        assert_eq!((count, sources.len()), (4 * clients.len(), clients.len()), "entries left over");
        sources.sort_unstable();
        sources.dedup();
        assert_eq!(sources.len(), clients.len(), "two flows with one source");
        Ok(())
    });
}
