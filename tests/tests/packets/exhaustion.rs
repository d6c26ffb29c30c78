//! All source ports towards an endpoint in use: the next flow is dropped and counted, and gets one that becomes free.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_common::conntrack::State;
use lb_common::layout::{Class, Forwarding, FrontendKind, ServiceVerdict};
use lb_common::proto;
use lb_common::proto::tcp::{ACK, RST, SYN};
use lb_common::reason::Reason;
use lb_tests::datapath::packet::Packet;
use lb_tests::datapath::{BackendSpec, Datapath, Program, Verdict, pin};

const FIRST: u32 = 20_000;
/// So many that 32 attempts find the last free one for certain in the end: flows are tried again and again.
const PORTS: u32 = 16;

#[test]
fn flows_share_the_ports_until_none_is_left_and_get_those_that_become_free() {
    pin();
    let mut datapath =
        Datapath::load_with_ports(Forwarding::Stack, (FIRST, PORTS)).expect("the programs load");
    let at = |address: [u8; 4], port| SocketAddr::new(IpAddr::V4(Ipv4Addr::from(address)), port);
    let (node, vip) = (Ipv4Addr::new(192, 0, 2, 1), at([192, 0, 2, 1], 30_080));
    let endpoint = at([10, 1, 0, 1], 8080);
    let service = datapath.empty_service();
    let backend = datapath.backend(service, &BackendSpec::serving(endpoint)).expect("a row");
    datapath.publish_class(service, Class::External, ServiceVerdict::Random, &[backend]).expect("a row");
    datapath.frontend(vip, proto::TCP, service, FrontendKind::NodePort).expect("room");
    datapath.node_address(vip.ip()).expect("room");
    datapath.masquerade(0, Some(node), None).expect("room");
    let client = |number: u8| at([198, 51, 100, number], 40_000);
    let first = |client, flags| Packet::new(proto::TCP, client, vip, flags).bytes();
    let onward = |client, flags| Packet::new(proto::TCP, client, endpoint, flags).bytes();

    let mut used = BTreeSet::new();
    let mut seen = Vec::new();
    for number in 0..PORTS as u8 {
        datapath.run(Program::FromNet, &first(client(number), SYN)).expect("a run");
        // With one port of sixteen free, 32 attempts miss it once in eight times: a client sends its SYN again.
        let outcome = (0..100)
            .map(|_| datapath.run(Program::ToNet, &onward(client(number), SYN)).expect("a run"))
            .find(|outcome| outcome.verdict == Verdict::Pass)
            .expect("one of a hundred times");
        let port = u16::from_be_bytes([outcome.packet[34], outcome.packet[35]]);
        assert_eq!(outcome.packet[26..30], node.octets());
        assert!((FIRST..FIRST + PORTS).contains(&port.into()), "{port}");
        assert!(used.insert(port), "{port} twice");
        seen.push(port);
    }
    let before = datapath.counters(service, backend).expect("counters");
    let late = client(200);
    datapath.run(Program::FromNet, &first(late, SYN)).expect("a run");
    for _ in 0..20 {
        let outcome = datapath.run(Program::ToNet, &onward(late, SYN)).expect("a run");
        assert_eq!((outcome.verdict, outcome.packet), (Verdict::Drop, onward(late, SYN)));
    }
    let counted = datapath.counters(service, backend).expect("counters").since(&before);
    assert_eq!(counted.get(Reason::NoFreePort.name()), Some(&20), "{counted:?}");
    assert_eq!(counted.get(&format!("service {service} Dropped")), Some(&20), "{counted:?}");

    // One connection is reset: its port is the late one's.
    let port = seen[7];
    let reset = Packet::new(proto::TCP, endpoint, SocketAddr::new(node.into(), port), RST | ACK).bytes();
    let outcome = datapath.run(Program::FromNet, &reset).expect("a run");
    assert_eq!(outcome.packet[30..34], [198, 51, 100, 7]);
    let outcome = (0..100)
        .map(|_| datapath.run(Program::ToNet, &onward(late, SYN)).expect("a run"))
        .find(|outcome| outcome.verdict == Verdict::Pass)
        .expect("one of a hundred times");
    assert_eq!(u16::from_be_bytes([outcome.packet[34], outcome.packet[35]]), port);
    let entries = datapath.entries().expect("the table");
    let sources: Vec<_> = entries.iter().filter(|entry| entry.source && !entry.reply).collect();
    assert_eq!(sources.len(), PORTS as usize, "{sources:?}");
    assert!(sources.iter().all(|entry| entry.state == State::SynSent), "{sources:?}");
}
