//! Datagrams in fragments as they are: in any order, and without some of them.

use std::net::{IpAddr, SocketAddr};

use lb_common::proto;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::NetError;
use super::segments::raw_socket;
use crate::datapath::packet::{ETH_LEN, Packet};
use crate::datapath::pieces::pieces;
use crate::netns::Namespace;

/// Bytes of UDP in a fragment: what fits the smallest network there is here.
const SIZE: usize = 1400;

/// The fragments of a UDP datagram, from their IP headers on.
pub fn udp_fragments(from: SocketAddr, to: SocketAddr, id: u32, payload: &[u8]) -> Vec<Vec<u8>> {
    let packet = Packet { ttl: 64, ..Packet::new(proto::UDP, from, to, 0).with_payload(payload) };
    pieces(&packet.bytes(), id, SIZE).into_iter().map(|frame| frame[ETH_LEN..].to_vec()).collect()
}

/// A raw socket of one place, that sends packets with the IP headers they have.
#[derive(Debug)]
pub struct RawSender {
    socket: UdpSocket,
}

impl RawSender {
    /// A sender of IPv4 or IPv6 packets.
    ///
    /// # Errors
    /// Not root.
    pub async fn open(at: &impl AsRef<Namespace>, v6: bool) -> Result<Self, NetError> {
        let socket =
            at.as_ref().run(async move { UdpSocket::from_std(raw_socket(v6, libc::IPPROTO_RAW)?) }).await?;
        Ok(Self { socket })
    }

    /// Sends packets to an address, one after another.
    ///
    /// # Errors
    /// The kernel does not send one.
    pub async fn send<'p>(
        &self,
        to: IpAddr,
        packets: impl IntoIterator<Item = &'p Vec<u8>>,
    ) -> Result<(), NetError> {
        for packet in packets {
            // The port of a raw socket's address means nothing.
            self.socket.send_to(packet, SocketAddr::new(to, 0)).await?;
        }
        Ok(())
    }
}

/// A UDP server that sends back what it gets, in fragments, the last one first. Dropping it ends it.
#[derive(Debug)]
pub struct ReverseEcho {
    _tasks: JoinSet<()>,
}

impl ReverseEcho {
    /// Starts it on an address and port of a place. It listens when this returns.
    ///
    /// # Errors
    /// The port is taken, or not root.
    pub async fn start(at: &impl AsRef<Namespace>, own: SocketAddr) -> Result<Self, NetError> {
        let raw = RawSender::open(at, own.is_ipv6()).await?;
        at.as_ref()
            .run(async move {
                let socket = UdpSocket::bind(own).await?;
                let mut tasks = JoinSet::new();
                tasks.spawn(async move {
                    let (mut buffer, mut id) = (vec![0; 65_536], 1);
                    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                        let fragments = udp_fragments(own, from, id, &buffer[..length]);
                        // The client sees what is missing.
                        let _sent = raw.send(from.ip(), fragments.iter().rev()).await;
                        id += 1;
                    }
                });
                Ok(Self { _tasks: tasks })
            })
            .await
    }
}
