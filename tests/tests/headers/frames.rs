//! Frames that no socket makes: in pieces, in virtual LANs.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader,
    Ipv6Header, PacketBuilder,
};
use lb_common::layout::ServiceStat;
use lb_tests::cluster::Forwarding;
use lb_tests::lab::{KubePod, Node, Shape};
use lb_tests::workload::{Frames, NetError, UdpClient};
use serde_json::Value;

use crate::common::{SECONDS, cluster, drops, no_checksum_errors, service, set_link};

type Mac = [u8; 6];

/// How long to wait for an answer that must not come.
const IN_VAIN: Duration = Duration::from_millis(300);

/// A datagram in a frame, with one more header in front of it when `odd`.
fn frame((from, to): (Mac, Mac), (src, dst): (SocketAddr, SocketAddr), odd: bool, payload: &[u8]) -> Vec<u8> {
    let headers = match (src.ip(), dst.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let options: &[u8] = if odd { &[1; 8] } else { &[] };
            let header = Ipv4Header {
                time_to_live: 64,
                source: source.octets(),
                destination: destination.octets(),
                options: options.try_into().unwrap(),
                ..Ipv4Header::default()
            };
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                hop_limit: 64,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv6Header::default()
            };
            // An atomic fragment: all of it.
            let whole = Ipv6FragmentHeader::new(IpNumber::UDP, IpFragOffset::ZERO, false, 7);
            let extensions = Ipv6Extensions { fragment: odd.then_some(whole), ..Ipv6Extensions::default() };
            IpHeaders::Ipv6(header, extensions)
        }
        mixed => panic!("{mixed:?}"),
    };
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(from, to).ip(headers).udp(src.port(), dst.port());
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

/// The frame in virtual LANs, the outermost first.
fn tagged(frame: &[u8], tags: &[u32]) -> Vec<u8> {
    let tags = tags.iter().flat_map(|tag| tag.to_be_bytes());
    [&frame[..12], &tags.collect::<Vec<_>>(), &frame[12..]].concat()
}

/// MAC addresses of a pod's device: its own end, the node's.
fn macs(pod: &KubePod) -> (Mac, Mac) {
    let device = pod.pod().unwrap().host_device().clone();
    (device.pod_mac, device.mac)
}

async fn in_pieces(forwarding: Forwarding) {
    let (cluster, client, server) = cluster(Shape::Routed, forwarding, 1).await;
    for pod in [&client, &server] {
        set_link(pod, &["mtu", "9000"]).await;
    }
    let frames = Frames::open(&client, "eth0").unwrap();
    for ip in cluster.cluster_ips("default", "web").unwrap() {
        let to = SocketAddr::new(ip, 81);
        let socket = UdpClient::connect(&client, to, None, 0).await.unwrap();
        let from = socket.local().unwrap();
        for odd in [false, true] {
            for length in [4500, 6000, 8900] {
                let text: String = (0..length).map(|at| char::from(b'a' + (at % 23) as u8)).collect();
                let whole = frame(macs(&client), (from, to), odd, format!("echo {text}").as_bytes());
                let what = format!("{ip}, {length} bytes, more headers: {odd}");
                for scattered in [false, true, true] {
                    if scattered { frames.send_scattered(&whole) } else { frames.send(&whole) }.unwrap();
                    let answer = socket.receive(SECONDS).await;
                    let answer =
                        answer.unwrap_or_else(|error| panic!("{what}: {error}; {:?}", drops(&cluster)));
                    assert!(answer == text, "{what}: another answer");
                }
            }
            // A checksum of zero: none, in IPv4.
            if ip.is_ipv4() && !odd {
                let mut bare = frame(macs(&client), (from, to), odd, b"echo without");
                bare[14 + 20 + 6..14 + 20 + 8].copy_from_slice(&[0, 0]);
                frames.send(&bare).unwrap();
                assert_eq!(socket.receive(SECONDS).await.as_deref(), Ok("without"));
            }
        }
    }
    no_checksum_errors([&client, &server]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jumbo_frames_in_pieces_are_served_stack() {
    in_pieces(Forwarding::Stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jumbo_frames_in_pieces_are_served_redirect() {
    in_pieces(Forwarding::Redirect).await;
}

/// The MAC address of a device.
async fn mac(node: &Node, device: &str) -> Mac {
    let output = node.exec(&["ip", "-j", "link", "show", "dev", device], &[], SECONDS).await.unwrap();
    parse(&output.stdout)
}

fn parse(output: &[u8]) -> Mac {
    let links: Value = serde_json::from_slice(output).unwrap();
    let text = links[0]["address"].as_str().unwrap();
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_in_a_virtual_lan_are_left_alone() {
    // One tag, one within another, one within another that is about priority.
    const TAGS: [&[u32]; 3] = [&[0x8100_002a], &[0x88a8_0007, 0x8100_002a], &[0x8100_e000, 0x8100_002a]];
    let (cluster, client, _server) = cluster(Shape::Routed, Forwarding::Redirect, 1).await;
    let mut object = service("ports");
    object["spec"]["type"] = "NodePort".into();
    let created = cluster.api().create(&object).unwrap();
    let node_port = created["spec"]["ports"][1]["nodePort"].as_u64().unwrap() as u16;
    cluster.settle("default").await.unwrap();
    let (outside, node) = (cluster.lab().client(0), cluster.node(0).clone());
    let there = mac(&node, "eth0").await;
    let output = outside.exec(&["ip", "-j", "link", "show", "dev", "eth0"], &[], SECONDS).await.unwrap();
    let here = parse(&output.stdout);
    for v6 in [false, true] {
        let of_family = |address: &&IpAddr| address.is_ipv6() == v6;
        let ips = cluster.cluster_ips("default", "web").unwrap();
        let vip = SocketAddr::new(*ips.iter().find(of_family).unwrap(), 81);
        let port = SocketAddr::new(*node.addresses().iter().find(of_family).unwrap(), node_port);
        let pods = (
            Frames::open(&client, "eth0").unwrap(),
            UdpClient::connect(&client, vip, None, 0).await.unwrap(),
            vip,
            macs(&client),
        );
        let hosts = (
            Frames::open(outside, "eth0").unwrap(),
            UdpClient::connect(outside, port, None, 0).await.unwrap(),
            port,
            (here, there),
        );
        for (frames, socket, to, macs) in [pods, hosts] {
            let ends = (socket.local().unwrap(), to);
            let plain = frame(macs, ends, false, b"echo plain");
            let flows = || {
                let tables = cluster.tables(&node).unwrap();
                let count =
                    tables.ports().map(|(_, counters)| counters.get(ServiceStat::Connections)).sum::<u64>();
                (count, tables.drops().clone())
            };
            let before = flows();
            // What is in a virtual LAN begins nothing, and is answered by nobody.
            for tags in TAGS {
                frames.send(&tagged(&plain, tags)).unwrap();
                assert_eq!(socket.receive(IN_VAIN).await, Err(NetError::Timeout), "{to} {tags:x?}");
            }
            assert_eq!(flows(), before, "{to}");
            frames.send(&plain).unwrap();
            assert_eq!(socket.receive(SECONDS).await.as_deref(), Ok("plain"), "{to}");
            assert_eq!(flows().0, before.0 + 1, "{to}");
            // A tag that is about priority alone is no virtual LAN.
            frames.send(&tagged(&plain, &[0x8100_e000])).unwrap();
            assert_eq!(socket.receive(SECONDS).await.as_deref(), Ok("plain"), "{to}");
        }
    }
}
