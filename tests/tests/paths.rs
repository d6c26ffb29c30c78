//! How long the paths of established flows are, and those of strangers' packets and sockets, in instructions and helper calls: no clock, so that a machine's mood does
//! not matter.
//!
//! `tests/data/paths.txt` says how long they were when somebody looked; a path that is longer fails. `UPDATE_EXPECT=1`
//! writes what is found. A compiler may lay code out a little differently: a twentieth is let pass.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context as _, Result, ensure};
use lb_common::layout::{Client, Forwarding, FrontendKind};
use lb_tests::bench::{Options, packet};
use lb_tests::datapath::case::{Step, World};
use lb_tests::datapath::journey::Site;
use lb_tests::datapath::packet::Packet;
use lb_tests::datapath::path::{Length, Paths};
use lb_tests::datapath::trip::{Trip, Way, on_wires};
use lb_tests::datapath::wire::Wires;
use lb_tests::datapath::{Program, Verdict};

/// Lengths by name of the path.
type Lengths = BTreeMap<String, Length>;

fn measure(world: &mut World, paths: &Paths, found: &mut Lengths, what: &str, step: &Step) -> Result<()> {
    world.always(step)?;
    world.step(step)?;
    let (outcome, length) = paths.measure(&mut world.datapath, step.program, &step.packet)?;
    ensure!(
        outcome.verdict == step.verdict && outcome.packet == step.becomes,
        "counting its instructions, the packet became another: {:?}",
        outcome.verdict
    );
    note(world, found, what, length)
}

fn note(world: &World, found: &mut Lengths, what: &str, length: Length) -> Result<()> {
    let transport = if world.is_tcp() { "TCP" } else { "UDP" };
    let family = if world.v6 { 6 } else { 4 };
    let name = format!("{:?} IPv{family} {transport} {what}", world.forwarding).to_lowercase();
    ensure!(found.insert(name, length).is_none(), "two paths are called {what}");
    Ok(())
}

fn measure_all(world: &mut World, paths: &Paths, found: &mut Lengths) -> Result<()> {
    // A pod and a pod, through a cluster IP.
    let here = world.journey(FrontendKind::ClusterIp, Client::Pod, Site::Here, 0)?;
    world.steps(&here.flow.handshake())?;
    let middle = world.middle();
    let (request, response) = (here.flow.request(middle), here.flow.response(middle));
    measure(world, paths, found, "from_pod request", &here.flow.goes("a request", &request))?;
    if world.forwarding == Forwarding::Redirect {
        let early = here.flow.returns_early("a response at the endpoint's device", &response);
        measure(world, paths, found, "from_pod response", &early)?;
    } else {
        measure(world, paths, found, "to_pod response", &here.flow.returns("a response", &response))?;
        let arrives =
            Step::untouched("a request arrives", Program::ToPod, &here.flow.translated(&request).bytes());
        measure(world, paths, found, "to_pod request", &arrives)?;
    }
    // Outside, through a node port, masqueraded, to an endpoint of another node.
    let beyond = world.journey(FrontendKind::NodePort, Client::Outside, Site::Beyond, 0)?;
    world.steps(&beyond.handshake())?;
    let steps = [beyond.request(middle), beyond.answer(middle)].concat();
    for (what, step) in
        ["from_net request", "to_net request", "from_net response", "to_net response"].iter().zip(&steps)
    {
        measure(world, paths, found, what, step)?;
    }
    // Nobody's.
    let (one, other) = (world.address(), world.address());
    let packet = Packet::new(world.protocol, (one, 1234).into(), (other, 80).into(), middle).bytes();
    for program in Program::ALL {
        let what = format!("{} foreign", program.name());
        measure(world, paths, found, &what, &Step::untouched("a packet of others", program, &packet))?;
    }
    // Nobody's, for the first time, at ports that no Service has.
    let packet = Packet::new(world.protocol, (one, 2001).into(), (other, 2002).into(), middle).bytes();
    for program in Program::ALL {
        let (outcome, length) = paths.measure(&mut world.datapath, program, &packet)?;
        ensure!(outcome.verdict == Verdict::Pass && outcome.packet == packet, "{outcome:?}");
        note(world, found, &format!("{} foreign, first", program.name()), length)?;
    }
    measure_sockets(world, paths, found)
}

/// Sockets whose peer has nothing to do with a Service.
fn measure_sockets(world: &mut World, paths: &Paths, found: &mut Lengths) -> Result<()> {
    let port = 2002_u16.to_be_bytes();
    // `struct bpf_sock` and `struct bpf_sock_addr` (include/uapi/linux/bpf.h): the port of the peer.
    let (mut socket, mut address) = (vec![0; 80], vec![0; 72]);
    socket[48..50].copy_from_slice(&port);
    address[24..26].copy_from_slice(&port);
    for (program, context) in
        [("sock_release", socket), ("getpeername4", address.clone()), ("getpeername6", address)]
    {
        let (result, length) = paths.measure_socket(&mut world.datapath, program, context)?;
        ensure!(result == 1, "{program} returned {result}");
        note(world, found, &format!("{program} foreign"), length)?;
    }
    Ok(())
}

/// The XDP program, through a node port, masqueraded.
fn measure_wire(world: &mut World, wires: &Wires, paths: &Paths, found: &mut Lengths) -> Result<()> {
    for (way, what) in [(Way::Back, "from_wire request"), (Way::Forward, "from_wire forwarded")] {
        let trip = Trip::new(world, wires, FrontendKind::NodePort, way, 0)?;
        trip.stands(world)?;
        measure(world, paths, found, what, &trip.goes("a request", &trip.request(world)))?;
        if way == Way::Back {
            let response = trip.response(world);
            measure(world, paths, found, "from_wire response", &trip.returns("a response", &response))?;
        }
    }
    let (one, other) = (world.address(), world.address());
    let packet = Packet::new(world.protocol, (one, 1234).into(), (other, 80).into(), world.middle()).bytes();
    let step = Step::untouched("a packet of others", Program::FromWire, &packet);
    measure(world, paths, found, "from_wire foreign", &step)
}

fn line((name, length): (&String, &Length)) -> String {
    let Length { instructions, rows, helpers } = length;
    let helpers = if helpers.is_empty() { "-".to_owned() } else { helpers.join(",") };
    format!("{name:44} {instructions:4} {rows} {helpers}\n")
}

/// Lengths as written down.
fn written(text: &str) -> Result<Lengths> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let length = |line: &str| {
        let mut fields = line.rsplitn(4, ' ').map(str::trim);
        let helpers = fields.next()?;
        let known =
            ["redirect", "redirect_peer", "redirect_neigh", "redirect_map", "csum_update", "ktime_get_ns"];
        let helpers = helpers.split(',').filter(|helper| *helper != "-");
        let helpers = helpers.map(|helper| known.into_iter().find(|known| *known == helper));
        let (rows, rest) = (fields.next()?.parse().ok()?, fields.next()?);
        let name = fields.next()?.to_owned();
        Some((
            name,
            Length { instructions: rest.parse().ok()?, rows, helpers: helpers.collect::<Option<_>>()? },
        ))
    };
    lines.map(|line| length(line).with_context(|| format!("not a path: {line}"))).collect()
}

#[test]
fn the_path_of_an_established_flow_got_no_longer() {
    let found = Mutex::new(Lengths::new());
    on_wires(|world, wires| {
        let paths = Paths::read(world.forwarding)?;
        let mut found = found.lock().expect("no panic while locked");
        measure_all(world, &paths, &mut found)?;
        measure_wire(world, wires, &paths, &mut found)
    });
    let found = found.into_inner().expect("no panic while locked");
    let text: String = found.iter().map(line).collect();
    println!("path, instructions, rows read, helpers\n{text}");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/paths.txt");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let head =
            "# Instructions, rows of arrays read and helpers called by a packet (tests/tests/paths.rs).\n";
        fs::write(&file, format!("{head}{text}")).expect("the file can be written");
        return;
    }
    let expected = written(&fs::read_to_string(&file).expect("data/paths.txt")).expect("paths");
    let mut longer = Vec::new();
    for (name, length) in &found {
        let Some(before) = expected.get(name) else {
            longer.push(format!("{name} is new"));
            continue;
        };
        let allowed = before.instructions + before.instructions.div_ceil(20);
        if length.instructions > allowed || length.rows > before.rows || length.helpers != before.helpers {
            longer.push(format!("{}was {}", line((name, length)), line((name, before))));
        }
    }
    longer.extend(
        expected.keys().filter(|name| !found.contains_key(*name)).map(|name| format!("{name} is gone")),
    );
    assert!(
        longer.is_empty(),
        "UPDATE_EXPECT=1 accepts, with a reason in the commit:\n{}",
        longer.join("\n")
    );
}

#[test]
fn the_benchmark_repeats_packets_that_stay_as_they_are() {
    // Whether it measures well is not for a test to say; that every case is what it claims to be is checked on the way.
    let options = Options { rounds: Some(1), filter: "ipv4 tcp".to_owned(), ..Options::default() };
    let report = packet::run(&options).expect("a report");
    let counted = report.rows.iter().filter(|row| row.path.is_some()).count();
    let carried = report.rows.iter().filter(|row| row.case.starts_with("xdp ")).count();
    assert_eq!((counted, carried), (16, 3), "{}", report.table());
}
