//! A server after agnhost's `netexec`: says over HTTP and UDP who it is and whom it is talking to.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use futures::future::{Either, select};
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    task::JoinSet,
};

use super::registry;
use crate::netns::Namespace;

/// Description of a server.
///
/// HTTP/1.1 with keep-alive: `/hostname` (and `/`), `/clientip` (address and port of the client), `/echo?msg=…`,
/// `/header?key=…`, `/healthz`; `wait=<milliseconds>` in any query delays the answer. UDP: datagrams `hostname`,
/// `clientip`, `echo …`.
#[derive(Debug, Clone)]
pub struct Netexec {
    hostname: String,
    http: Vec<u16>,
    udp: Vec<u16>,
    bind: Option<IpAddr>,
    udp_addresses: Vec<IpAddr>,
    latency: Duration,
    registry: bool,
}

impl Netexec {
    /// A server that calls itself `hostname` and listens nowhere yet.
    pub fn new(hostname: impl Into<String>) -> Self {
        Self {
            hostname: hostname.into(),
            http: Vec::new(),
            udp: Vec::new(),
            bind: None,
            udp_addresses: Vec::new(),
            latency: Duration::ZERO,
            registry: false,
        }
    }

    /// Also listens for HTTP on this port.
    #[must_use]
    pub fn http(mut self, port: u16) -> Self {
        self.http.push(port);
        self
    }

    /// Also listens for datagrams on this port.
    #[must_use]
    pub fn udp(mut self, port: u16) -> Self {
        self.udp.push(port);
        self
    }

    /// Listens on one address instead of all.
    #[must_use]
    pub fn bind(mut self, address: IpAddr) -> Self {
        self.bind = Some(address);
        self
    }

    /// Listens for datagrams on these addresses instead of all (`--udp-listen-addresses`). A server on all addresses answers
    /// from the one the route to the client prefers, which in a node's own network need not be the one that was asked.
    #[must_use]
    pub fn udp_addresses(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.udp_addresses.extend(addresses);
        self
    }

    /// Answers every request this late.
    #[must_use]
    pub fn latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    /// Serves an image ([`super::registry`]), too, as agnhost's `fake-registry-server` does.
    #[must_use]
    pub fn registry(mut self) -> Self {
        self.registry = true;
        self
    }

    /// Starts it. It listens when this returns.
    ///
    /// # Errors
    /// A port is taken, or not one of the place's addresses.
    pub async fn start(&self, at: &impl AsRef<Namespace>) -> anyhow::Result<Server> {
        let (description, namespace) = (self.clone(), at.as_ref().clone());
        namespace.clone().run(async move { description.listen(namespace).await }).await
    }

    async fn listen(self, namespace: Namespace) -> anyhow::Result<Server> {
        let (phase, phases) = watch::channel(Phase::Serve);
        let shared = Arc::new(Shared {
            hostname: self.hostname,
            latency: self.latency,
            registry: self.registry,
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        for port in self.http {
            let listener = listen_tcp(self.bind, port).await.with_context(|| format!("TCP port {port}"))?;
            tasks.spawn(accept(listener, Arc::clone(&shared), phases.clone()));
        }
        for port in self.udp {
            let addresses = match self.udp_addresses.as_slice() {
                [] => vec![self.bind],
                some => some.iter().copied().map(Some).collect(),
            };
            for address in addresses {
                let socket = bind_udp(address, port).await.with_context(|| format!("UDP port {port}"))?;
                tasks.spawn(datagrams(socket, Arc::clone(&shared), phases.clone()));
            }
        }
        Ok(Server { shared, phase, tasks, namespace })
    }
}

/// A running server. Dropping it ends it, open connections included, but does not wait for that: see [`Server::kill`].
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    phase: watch::Sender<Phase>,
    tasks: JoinSet<()>,
    namespace: Namespace,
}

#[derive(Debug)]
struct Shared {
    hostname: String,
    latency: Duration,
    registry: bool,
    requests: AtomicU64,
    connections: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Accept and answer.
    Serve,
    /// Finish what was accepted, accept nothing more.
    Drain,
}

impl Server {
    /// What it calls itself.
    pub fn hostname(&self) -> &str {
        &self.shared.hostname
    }

    /// Where it runs.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// How many requests and datagrams it has answered.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// How many TCP connections it has accepted.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Ends at once, as with SIGKILL: when this returns, nothing listens and all connections are closed.
    pub async fn kill(mut self) {
        self.tasks.shutdown().await;
        // Connections end right after the task that accepted them; each holds on to what they share.
        while Arc::strong_count(&self.shared) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Ends as a well-behaved pod does after SIGTERM: goes on serving for `delay` (endpoints are being updated
    /// meanwhile), then closes its listeners, finishes the requests under way, closes idle connections, and drops what
    /// is left after another `drain`.
    pub async fn shut_down(mut self, delay: Duration, drain: Duration) {
        tokio::time::sleep(delay).await;
        self.phase.send_replace(Phase::Drain);
        let finish = async { while self.tasks.join_next().await.is_some() {} };
        // What has not finished by then is aborted when `self` is dropped.
        let _in_time = tokio::time::timeout(drain, finish).await;
    }
}

/// Listens on one address, or on all of both families.
pub(crate) async fn listen_tcp(address: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    match address {
        Some(address) => TcpListener::bind((address, port)).await,
        None => match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
            }
            result => result,
        },
    }
}

async fn bind_udp(address: Option<IpAddr>, port: u16) -> io::Result<UdpSocket> {
    match address {
        Some(address) => UdpSocket::bind((address, port)).await,
        None => match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).await {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await
            }
            result => result,
        },
    }
}

/// An address as the client knows it: IPv4 as IPv4 although the socket is one of IPv6.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, mut phases: watch::Receiver<Phase>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    shared.connections.fetch_add(1, Ordering::Relaxed);
                    connections.spawn(serve(stream, plain(peer), Arc::clone(&shared), phases.clone()));
                }
                // Out of descriptors, or a connection that died in the queue: the next one may work.
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            },
            _ = connections.join_next(), if !connections.is_empty() => {}
            _ = phases.changed() => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>, mut phases: watch::Receiver<Phase>) {
    // A connection that is gone already shows in the first read.
    let _best_effort = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(&shared, peer, &request).await) }
    });
    let connection = std::pin::pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    // Whether the phase was set or the server is gone makes no difference here.
    let drain = std::pin::pin!(async { drop(phases.wait_for(|phase| *phase == Phase::Drain).await) });
    // How a connection ended is the client's business.
    match select(connection, drain).await {
        Either::Left((_ended, _)) => {}
        Either::Right((_, mut connection)) => {
            connection.as_mut().graceful_shutdown();
            let _ended = connection.await;
        }
    }
}

async fn answer(shared: &Shared, peer: SocketAddr, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let query = request.uri().query().unwrap_or_default();
    let parameter = |name: &str| {
        query
            .split('&')
            .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
    };
    let wait =
        parameter("wait").and_then(|wait| wait.parse().ok()).map_or(shared.latency, Duration::from_millis);
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
    let body = match request.uri().path() {
        "/" | "/hostname" | "/hostName" => Some(shared.hostname.clone()),
        "/clientip" => Some(peer.to_string()),
        "/echo" => Some(parameter("msg").unwrap_or_default().replace('+', " ")),
        "/healthz" => Some("ok".to_owned()),
        "/header" => {
            let header = parameter("key").and_then(|key| request.headers().get(key));
            Some(header.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned())
        }
        path if shared.registry => registry::answer(path),
        _ => None,
    };
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let mut response = Response::new(Full::new(Bytes::from(body.clone().unwrap_or_default())));
    if body.is_none() {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    if let Ok(name) = shared.hostname.parse() {
        response.headers_mut().insert("x-hostname", name);
    }
    response
}

async fn datagrams(socket: UdpSocket, shared: Arc<Shared>, mut phases: watch::Receiver<Phase>) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; 65_536];
    let mut replies = JoinSet::new();
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            _ = replies.join_next(), if !replies.is_empty() => continue,
            _ = phases.changed() => break,
        };
        // An ICMP error about an earlier answer shows up here; the next datagram may be fine.
        let Ok((length, peer)) = received else { continue };
        let text = String::from_utf8_lossy(&buffer[..length]);
        let reply = match text.trim_end() {
            "hostname" | "hostName" => shared.hostname.clone(),
            "clientip" => plain(peer).to_string(),
            other => match other.strip_prefix("echo ") {
                Some(message) => message.to_owned(),
                None => continue,
            },
        };
        let (socket, shared) = (Arc::clone(&socket), Arc::clone(&shared));
        let send = async move {
            if !shared.latency.is_zero() {
                tokio::time::sleep(shared.latency).await;
            }
            if socket.send_to(reply.as_bytes(), peer).await.is_ok() {
                shared.requests.fetch_add(1, Ordering::Relaxed);
            }
        };
        replies.spawn(send);
    }
    while replies.join_next().await.is_some() {}
}
