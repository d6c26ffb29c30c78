//! SCTP without the kernel's: associations of a library without input or output of its own, over raw sockets. So kernels
//! without SCTP do, and the checksums that our programs make are checked by code of others.
//!
//! A raw socket gets the packets of all ports: everyone picks those of its own. While one is open the kernel does not say
//! that it has no such protocol.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use sctp_proto::{
    Association, AssociationHandle, ClientConfig, DatagramEvent, Endpoint, EndpointConfig, Event, Payload,
    PayloadProtocolIdentifier, ServerConfig, StreamEvent, TransportConfig,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::UdpSocket, task::JoinSet};

use super::{NetError, in_time};
use crate::{lab::any_like, netns::Namespace};

/// IP protocol number of SCTP.
const SCTP: i32 = 132;
/// The stream that everything is said on.
const STREAM: u16 = 0;
/// Longest message.
const LONGEST: usize = 65_536;

/// A running server: to `hostname` it answers with its name, to `clientip` with whom it sees, to everything else with the
/// same. Dropping it ends it without a word.
#[derive(Debug)]
pub struct SctpServer {
    corrupt: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl SctpServer {
    /// Starts it on `port` of all addresses.
    ///
    /// # Errors
    /// No raw sockets to be had.
    pub async fn start(at: &impl AsRef<Namespace>, port: u16, name: &str) -> anyhow::Result<Self> {
        let (name, corrupt) = (name.to_owned(), Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&corrupt);
        at.as_ref()
            .run(async move {
                let mut tasks = JoinSet::new();
                for any in ["0.0.0.0", "::"] {
                    let any: IpAddr = any.parse()?;
                    let socket = raw_socket(any).with_context(|| format!("a raw socket at {any}"))?;
                    let mut peer = Peer::new(socket, port, Some(name.clone()), Arc::clone(&counter));
                    tasks.spawn(async move { while peer.turn().await.is_ok() {} });
                }
                anyhow::Ok(Self { corrupt, _tasks: tasks })
            })
            .await
    }

    /// Packets with a wrong checksum that arrived.
    pub fn corrupt(&self) -> u64 {
        self.corrupt.load(Ordering::Relaxed)
    }
}

/// A client's association that stays open.
#[derive(Debug)]
pub struct SctpClient {
    peer: Peer,
    handle: AssociationHandle,
}

impl SctpClient {
    /// Opens an association from that port.
    ///
    /// # Errors
    /// [`NetError::Refused`] after an ICMP error or an ABORT, [`NetError::Timeout`] without an answer.
    pub async fn connect(
        at: &impl AsRef<Namespace>,
        to: SocketAddr,
        source_port: u16,
        limit: Duration,
    ) -> Result<Self, NetError> {
        let opened = at.as_ref().run(in_time(limit, async move {
            let socket = raw_socket(any_like(to.ip()))?;
            socket.connect(SocketAddr::new(to.ip(), 0)).await?;
            let mut peer = Peer::new(socket, source_port, None, Arc::default());
            let transport =
                TransportConfig::default().with_local_port(source_port).with_remote_port(to.port());
            let mut config = ClientConfig::new();
            config.transport = Arc::new(transport);
            let connected = peer.endpoint.connect(config, to);
            let (handle, association) = connected.map_err(|error| NetError::Other(error.to_string()))?;
            peer.associations.insert(handle, association);
            peer.send_all().await?;
            while !peer.connected {
                peer.turn().await?;
            }
            let association = peer.association(handle)?;
            association.open_stream(STREAM, PayloadProtocolIdentifier::Binary).map_err(other)?;
            Ok((peer, handle))
        }));
        let (peer, handle) = opened.await?;
        Ok(Self { peer, handle })
    }

    /// Sends a message and waits for the answer.
    ///
    /// # Errors
    /// [`NetError::Reset`] when the association is lost meanwhile.
    pub async fn ask(&mut self, message: &[u8], limit: Duration) -> Result<Vec<u8>, NetError> {
        let (peer, handle, message) = (&mut self.peer, self.handle, Bytes::copy_from_slice(message));
        let asked = async {
            let association = peer.association(handle)?;
            let mut stream = association.stream(STREAM).map_err(other)?;
            stream.write_sctp(&message, PayloadProtocolIdentifier::Binary).map_err(other)?;
            peer.send_all().await?;
            while peer.arrived.is_empty() {
                peer.turn().await?;
            }
            Ok(peer.arrived.remove(0))
        };
        in_time(limit, asked).await
    }

    /// Shuts the association down and waits until it is over.
    ///
    /// # Errors
    /// [`NetError::Timeout`] when the other side does not agree.
    pub async fn shut_down(mut self, limit: Duration) -> Result<(), NetError> {
        self.peer.association(self.handle)?.shutdown().map_err(other)?;
        let over = async {
            self.peer.send_all().await?;
            while self.peer.associations.contains_key(&self.handle) && !self.peer.lost {
                self.peer.turn().await?;
            }
            Ok(())
        };
        in_time(limit, over).await
    }

    /// Packets with a wrong checksum that arrived.
    pub fn corrupt(&self) -> u64 {
        self.peer.corrupt.load(Ordering::Relaxed)
    }
}

/// One association for one question.
///
/// # Errors
/// See [`SctpClient`].
pub async fn sctp_ask(
    at: &impl AsRef<Namespace>,
    to: SocketAddr,
    source_port: u16,
    message: &str,
    limit: Duration,
) -> Result<String, NetError> {
    let mut client = SctpClient::connect(at, to, source_port, limit).await?;
    let answer = client.ask(message.as_bytes(), limit).await?;
    client.shut_down(limit).await?;
    String::from_utf8(answer).map_err(|error| NetError::BadAnswer(error.to_string()))
}

/// One side: a socket, and the associations of one port.
#[derive(Debug)]
struct Peer {
    socket: UdpSocket,
    port: u16,
    /// Of a server.
    name: Option<String>,
    endpoint: Endpoint,
    associations: HashMap<AssociationHandle, Association>,
    connected: bool,
    lost: bool,
    arrived: Vec<Vec<u8>>,
    corrupt: Arc<AtomicU64>,
}

impl Peer {
    fn new(socket: UdpSocket, port: u16, name: Option<String>, corrupt: Arc<AtomicU64>) -> Self {
        let server = name.is_some().then(|| Arc::new(ServerConfig::new()));
        Self {
            socket,
            port,
            name,
            endpoint: Endpoint::new(Arc::new(EndpointConfig::new()), server),
            associations: HashMap::new(),
            connected: false,
            lost: false,
            arrived: Vec::new(),
            corrupt,
        }
    }

    fn association(&mut self, handle: AssociationHandle) -> Result<&mut Association, NetError> {
        self.associations.get_mut(&handle).ok_or(NetError::Closed)
    }

    /// Waits for a packet or for a time to run out, and does what is to be done then.
    async fn turn(&mut self) -> Result<(), NetError> {
        let mut buffer = vec![0; LONGEST];
        let next = self.associations.values().filter_map(Association::poll_timeout).min();
        let wake = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            received = self.socket.recv_from(&mut buffer) => {
                let (length, from) = match received {
                    Ok(received) => received,
                    // An ICMP error about somebody else: a raw socket is told about all ports of an address.
                    Err(_) if self.name.is_some() || self.connected => return Ok(()),
                    Err(error) => return Err(error.into()),
                };
                self.take(&buffer[..length], from.ip());
            }
            () = tokio::time::sleep_until(wake.into()) => {
                let now = Instant::now();
                for association in self.associations.values_mut() {
                    if association.poll_timeout().is_some_and(|at| at <= now) {
                        association.handle_timeout(now);
                    }
                }
            }
        }
        self.happen()?;
        self.send_all().await
    }

    /// A packet as the raw socket gives it: of IPv4 with its header.
    fn take(&mut self, bytes: &[u8], from: IpAddr) {
        let header = if from.is_ipv4() { usize::from(bytes[0] & 0x0f) * 4 } else { 0 };
        let Some(packet) = bytes.get(header..).filter(|packet| packet.len() >= 12) else { return };
        let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        if port(2) != self.port {
            return;
        }
        let zeroed = [&packet[..8], &[0; 4], &packet[12..]].concat();
        if crc32c::crc32c(&zeroed).to_le_bytes() != packet[8..12] {
            self.corrupt.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let from = SocketAddr::new(from, port(0));
        let data = Bytes::copy_from_slice(packet);
        match self.endpoint.handle(Instant::now(), from, None, None, data) {
            Some((handle, DatagramEvent::NewAssociation(association))) => {
                self.associations.insert(handle, association);
            }
            Some((handle, DatagramEvent::AssociationEvent(event))) => {
                if let Some(association) = self.associations.get_mut(&handle) {
                    association.handle_event(event);
                }
            }
            None => {}
        }
    }

    /// What the associations have to say.
    fn happen(&mut self) -> Result<(), NetError> {
        let mut result = Ok(());
        let mut over = Vec::new();
        for (handle, association) in &mut self.associations {
            while let Some(event) = association.poll() {
                match event {
                    Event::Connected => self.connected = true,
                    Event::HandshakeFailed { .. } => result = Err(NetError::Refused),
                    Event::AssociationLost { .. } => self.lost = true,
                    Event::Stream(StreamEvent::Opened { .. }) => {
                        while association.accept_stream().is_some() {}
                    }
                    Event::Stream(StreamEvent::Readable { id }) => {
                        let peer = association.remote_addr();
                        let Ok(mut stream) = association.stream(id) else { continue };
                        while let Ok(Some(chunks)) = stream.read_sctp() {
                            let mut message = vec![0; chunks.len()];
                            chunks.read(&mut message).map_err(other)?;
                            let Some(name) = &self.name else {
                                self.arrived.push(message);
                                continue;
                            };
                            let answer = match message.as_slice() {
                                b"hostname" => Bytes::from(name.clone()),
                                b"clientip" => Bytes::from(peer.to_string()),
                                _ => Bytes::from(message),
                            };
                            stream.write_sctp(&answer, PayloadProtocolIdentifier::Binary).map_err(other)?;
                        }
                    }
                    _ => {}
                }
            }
            while let Some(event) = association.poll_endpoint_event() {
                if event.is_drained() {
                    over.push(*handle);
                }
                self.endpoint.handle_event(*handle, event);
            }
        }
        for handle in over {
            self.associations.remove(&handle);
        }
        if self.lost && self.name.is_none() && result.is_ok() && !self.connected {
            result = Err(NetError::Refused);
        }
        result
    }

    /// Sends whatever is to be sent.
    async fn send_all(&mut self) -> Result<(), NetError> {
        let now = Instant::now();
        let mut packets = Vec::new();
        while let Some(transmit) = self.endpoint.poll_transmit() {
            packets.push(transmit);
        }
        for association in self.associations.values_mut() {
            while let Some(transmit) = association.poll_transmit(now) {
                packets.push(transmit);
            }
        }
        for transmit in packets {
            let Payload::RawEncode(raw) = transmit.payload else { continue };
            for packet in raw {
                let to = SocketAddr::new(transmit.remote.ip(), 0);
                let sent = if self.name.is_some() {
                    self.socket.send_to(&packet, to).await
                } else {
                    self.socket.send(&packet).await
                };
                match sent {
                    Err(error) if self.name.is_none() && !self.connected => return Err(error.into()),
                    // See `turn`. What did not go is sent again in its time.
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn other(error: sctp_proto::Error) -> NetError {
    NetError::Other(error.to_string())
}

/// A raw socket of SCTP, in the guise of the runtime's datagram sockets: the same system calls.
fn raw_socket(like: IpAddr) -> io::Result<UdpSocket> {
    let domain = if like.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP)))?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}
