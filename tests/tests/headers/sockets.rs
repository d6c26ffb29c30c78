//! What sockets can be told to send, and super-packets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::time::Duration;

use lb_tests::cluster::Forwarding;
use lb_tests::lab::{KubePod, Shape};
use lb_tests::workload::{Bulk, Direction, Frames, TcpEcho};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use crate::common::{BULK, ECHO, SECONDS, cluster, no_checksum_errors, set_link};

/// Tells a socket which headers to send (RFC 3542 6, ip(7)).
fn tell(socket: &TcpSocket, level: i32, option: i32, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the bytes live as long as the call.
    let failed = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, bytes.as_ptr().cast(), bytes.len() as u32)
    };
    if failed < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An extension header with one option that nobody knows and everybody skips (RFC 4727 4), of so many units of eight bytes
/// beyond the first. Padding of more than seven bytes Linux would drop.
fn options(units: u8) -> Vec<u8> {
    let mut bytes = vec![0; 8 + usize::from(units) * 8];
    bytes[1] = units;
    let length = bytes.len() - 4;
    (bytes[2], bytes[3]) = (0x1e, length as u8);
    bytes
}

/// Sends a megabyte to an echo server over a connection with those headers, and compares what comes back.
async fn echoed(client: &KubePod, to: SocketAddr, headers: &[(i32, i32, Vec<u8>)]) {
    const LENGTH: usize = 1 << 20;
    let sent: Vec<u8> = (0..LENGTH as u32).flat_map(|at| [(at ^ (at >> 8)) as u8]).collect();
    let (headers, expected) = (headers.to_vec(), sent.clone());
    let work = async move {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        for (level, option, bytes) in &headers {
            tell(&socket, *level, *option, bytes)?;
        }
        let (mut from, mut into) = socket.connect(to).await?.into_split();
        let writer = tokio::spawn(async move {
            into.write_all(&sent).await?;
            into.shutdown().await
        });
        let mut received = Vec::new();
        from.read_to_end(&mut received).await?;
        writer.await.expect("no panic")?;
        io::Result::Ok(received)
    };
    let received = tokio::time::timeout(SECONDS, client.as_ref().run(work)).await;
    let received = received.unwrap_or_else(|_| panic!("no end of it: {to}")).unwrap();
    assert!(received == expected, "{} of {LENGTH} bytes came back, or others", received.len());
}

async fn with_headers(shape: Shape, forwarding: Forwarding, nodes: u32) {
    let (cluster, client, server) = cluster(shape, forwarding, nodes).await;
    let _echo = TcpEcho::start(&server, 9090).await.unwrap();
    // Linux (6.18) takes what follows the IPv6 header for the TCP header when it forwards a super-packet, and finds it too
    // big or not by the sequence number (`skb_gso_network_seglen`, net/core/gso.c; `ip6_rcv_core` sets the offset).
    let off = ["ethtool", "-K", "eth0", "tso", "off", "gso", "off"];
    let output = client.pod().unwrap().exec(&off, &[], SECONDS).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (v4, v6) = (libc::IPPROTO_IP, libc::IPPROTO_IPV6);
    for ip in cluster.cluster_ips("default", "more").unwrap() {
        let to = SocketAddr::new(ip, ECHO);
        let all: Vec<Vec<(i32, i32, Vec<u8>)>> = if ip.is_ipv4() {
            vec![vec![(v4, libc::IP_OPTIONS, vec![1; 4])], vec![(v4, libc::IP_OPTIONS, vec![1; 40])]]
        } else {
            vec![
                vec![(v6, libc::IPV6_DSTOPTS, options(0))],
                vec![(v6, libc::IPV6_HOPOPTS, options(0))],
                vec![(v6, libc::IPV6_HOPOPTS, options(1)), (v6, libc::IPV6_DSTOPTS, options(13))],
            ]
        };
        for headers in all {
            echoed(&client, to, &headers).await;
        }
    }
    no_checksum_errors([&client, &server]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_with_options_and_extension_headers_are_served_stack() {
    with_headers(Shape::Routed, Forwarding::Stack, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_with_options_and_extension_headers_are_served_redirect() {
    with_headers(Shape::Bridged, Forwarding::Redirect, 2).await;
}

/// Only where packets are handed straight to the other pod: Linux (6.18) does not forward such packets, Service or not, to a
/// device whose MTU their segments fill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn super_packets_over_64_kib_are_served_redirect() {
    const SIZE: &str = "180000";
    let (cluster, client, server) = cluster(Shape::Routed, Forwarding::Redirect, 1).await;
    let _bulk = Bulk::start(&server, 9091).await.unwrap();
    for pod in [&client, &server] {
        set_link(pod, &["gso_max_size", SIZE, "gro_max_size", SIZE]).await;
    }
    // These limits are for IPv6 (those of IPv4, Linux 6.3, have names of their own that not every `ip` knows).
    let ips: Vec<IpAddr> = cluster.cluster_ips("default", "more").unwrap();
    for ip in ips.into_iter().filter(IpAddr::is_ipv6) {
        for (direction, at) in [(Direction::Upload, &client), (Direction::Download, &server)] {
            let sender = Frames::watch(at, "eth0").unwrap();
            let to = SocketAddr::new(ip, BULK);
            let mut transfer = pin!(Bulk::transfer(&client, to, direction, 64 << 20, 7, SECONDS));
            let mut longest = 0;
            let outcome = loop {
                let outcome = tokio::time::timeout(Duration::from_millis(2), &mut transfer).await;
                longest = longest.max(sender.longest().unwrap().0);
                if let Ok(outcome) = outcome {
                    break outcome;
                }
            };
            outcome.unwrap_or_else(|error| panic!("{ip} {direction:?}: {error}, longest packet {longest}"));
            assert!(longest > 70_000, "{ip} {direction:?}: no super-packet over 64 KiB: {longest}");
        }
    }
    no_checksum_errors([&client, &server]).await;
}
