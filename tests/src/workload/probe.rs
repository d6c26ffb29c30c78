//! What a client does for a test: asks over HTTP and UDP, keeps flows open, and tells what came of it.
//!
//! The same code runs in two places: on the thread of a namespace of this process (pods, hosts outside the cluster), and
//! in the program `lb-probe`, a process of its own that the kernel counts to a node's cgroup (see
//! [`crate::lab::Caller`]). Orders and answers are plain data, one JSON object a line.

use std::{
    collections::HashMap,
    io::{BufRead as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::Method;
use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;

use super::{
    NetError,
    http::{Open, Target},
    in_time,
    netexec::plain,
    tcp::{self, TcpOptions},
};
use crate::netns::lock;

/// One thing to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Order {
    /// A GET request on a connection of its own.
    Http { to: SocketAddr, path: String, source_port: u16 },
    /// A connection, closed at once.
    Connect { to: SocketAddr, source_port: u16 },
    /// A connection that stays open; the answer carries its number.
    HttpOpen { to: SocketAddr, source_port: u16 },
    /// A GET request on an open connection.
    HttpGet { flow: u64, path: String },
    /// A UDP socket that stays open; the answer carries its number.
    UdpOpen { to: SocketAddr, source_port: u16, kind: UdpKind },
    /// A datagram, and the wait for one.
    UdpAsk { flow: u64, message: String },
    /// A datagram.
    UdpSend { flow: u64, message: String },
    /// The wait for a datagram.
    UdpReceive { flow: u64 },
    /// Forgets an open connection or socket.
    Close { flow: u64 },
}

/// How a UDP socket speaks to its Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UdpKind {
    /// `connect`, then `send`: ICMP errors arrive.
    Connected,
    /// `sendto` and `recvfrom`.
    Unconnected,
    /// As [`UdpKind::Connected`], on an IPv6 socket with the IPv4 address mapped (`::ffff:a.b.c.d`).
    Mapped,
}

/// What came of an order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// HTTP status; 0 for anything else.
    pub status: u16,
    /// Body, or datagram.
    pub body: String,
    /// Number of the flow that was opened.
    pub(crate) flow: u64,
    /// The client's own end.
    pub local: Option<SocketAddr>,
    /// The other end as the client's kernel names it (`getpeername`, `recvfrom`).
    pub peer: Option<SocketAddr>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) id: u64,
    pub(crate) order: Order,
    pub(crate) limit: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) id: u64,
    pub(crate) told: Result<Told, NetError>,
}

/// Carries out orders in the namespace of the thread it is polled on.
#[derive(Debug, Default)]
pub(crate) struct Prober {
    flows: Mutex<HashMap<u64, Flow>>,
    next: AtomicU64,
}

#[derive(Debug, Clone)]
enum Flow {
    Http(Arc<tokio::sync::Mutex<Open>>),
    Udp(Arc<Datagrams>),
}

#[derive(Debug)]
struct Datagrams {
    socket: UdpSocket,
    /// Where datagrams of an unconnected socket go.
    to: Option<SocketAddr>,
}

impl Prober {
    /// Carries out one order within `limit`.
    pub(crate) async fn run(&self, order: Order, limit: Duration) -> Result<Told, NetError> {
        in_time(limit, self.obey(order, limit)).await
    }

    async fn obey(&self, order: Order, limit: Duration) -> Result<Told, NetError> {
        match order {
            Order::Http { to, path, source_port } => {
                let mut open = open(to, source_port, limit).await?;
                let answer = open.ask(&path, Method::GET, true).await?;
                Ok(told(&open, answer.status.as_u16(), answer.text()))
            }
            Order::Connect { to, source_port } => {
                let stream = tcp::connect(to, tcp_options(source_port, limit)).await?;
                Ok(Told { local: stream.local_addr().ok(), peer: stream.peer_addr().ok(), ..Told::default() })
            }
            Order::HttpOpen { to, source_port } => {
                let open = open(to, source_port, limit).await?;
                let told = told(&open, 0, String::new());
                Ok(Told { flow: self.keep(Flow::Http(Arc::new(tokio::sync::Mutex::new(open)))), ..told })
            }
            Order::HttpGet { flow, path } => {
                let Flow::Http(open) = self.flow(flow)? else { return Err(no_such(flow)) };
                let mut open = open.lock().await;
                let answer = open.ask(&path, Method::GET, false).await?;
                Ok(told(&open, answer.status.as_u16(), answer.text()))
            }
            Order::UdpOpen { to, source_port, kind } => {
                let datagrams = Datagrams::open(to, source_port, kind).await?;
                let ends = datagrams.ends();
                Ok(Told { flow: self.keep(Flow::Udp(Arc::new(datagrams))), ..ends })
            }
            Order::UdpAsk { flow, message } => {
                let datagrams = self.datagrams(flow)?;
                datagrams.send(&message).await?;
                datagrams.receive().await
            }
            Order::UdpSend { flow, message } => {
                self.datagrams(flow)?.send(&message).await?;
                Ok(Told::default())
            }
            Order::UdpReceive { flow } => self.datagrams(flow)?.receive().await,
            Order::Close { flow } => {
                lock(&self.flows).remove(&flow);
                Ok(Told::default())
            }
        }
    }

    fn keep(&self, flow: Flow) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        lock(&self.flows).insert(number, flow);
        number
    }

    fn flow(&self, number: u64) -> Result<Flow, NetError> {
        lock(&self.flows).get(&number).cloned().ok_or_else(|| no_such(number))
    }

    fn datagrams(&self, number: u64) -> Result<Arc<Datagrams>, NetError> {
        match self.flow(number)? {
            Flow::Udp(datagrams) => Ok(datagrams),
            Flow::Http(_) => Err(no_such(number)),
        }
    }
}

impl Datagrams {
    async fn open(to: SocketAddr, source_port: u16, kind: UdpKind) -> Result<Self, NetError> {
        let to = match (kind, to.ip()) {
            (UdpKind::Mapped, IpAddr::V4(address)) => {
                SocketAddr::new(address.to_ipv6_mapped().into(), to.port())
            }
            _ => to,
        };
        let any = if kind == UdpKind::Mapped {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            crate::lab::any_like(to.ip())
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, source_port)).await?;
        if kind == UdpKind::Unconnected {
            return Ok(Self { socket, to: Some(to) });
        }
        socket.connect(to).await?;
        Ok(Self { socket, to: None })
    }

    fn ends(&self) -> Told {
        Told { local: self.socket.local_addr().ok(), peer: self.socket.peer_addr().ok(), ..Told::default() }
    }

    async fn send(&self, message: &str) -> Result<(), NetError> {
        match self.to {
            Some(to) => self.socket.send_to(message.as_bytes(), to).await?,
            None => self.socket.send(message.as_bytes()).await?,
        };
        Ok(())
    }

    async fn receive(&self) -> Result<Told, NetError> {
        let mut buffer = vec![0; 65_536];
        let (length, from) = match self.to {
            Some(_) => self.socket.recv_from(&mut buffer).await.map(|(length, from)| (length, Some(from)))?,
            None => (self.socket.recv(&mut buffer).await?, self.socket.peer_addr().ok()),
        };
        let body = String::from_utf8_lossy(&buffer[..length]).into_owned();
        Ok(Told { body, local: self.socket.local_addr().ok(), peer: from.map(plain), ..Told::default() })
    }
}

fn no_such(flow: u64) -> NetError {
    NetError::Other(format!("flow {flow} is not open, or of the other protocol"))
}

fn tcp_options(source_port: u16, timeout: Duration) -> TcpOptions {
    // A port of choice is wanted again at once: no TIME_WAIT may keep it.
    TcpOptions { timeout, source: None, source_port, reset_on_close: source_port != 0 }
}

async fn open(to: SocketAddr, source_port: u16, limit: Duration) -> Result<Open, NetError> {
    let target = Target::parse(&format!("http://{to}/"))?;
    // The target is an address: no name of a namespace is needed to resolve it.
    Open::new("", &target, tcp_options(source_port, limit)).await
}

fn told(open: &Open, status: u16, body: String) -> Told {
    Told { status, body, flow: 0, local: Some(open.local), peer: Some(open.peer()) }
}

/// Carries out orders from standard input until it is closed: the program `lb-probe`.
///
/// # Errors
/// Standard input or output broke, or a line is no order.
pub fn serve() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (orders, mut arrived) = tokio::sync::mpsc::unbounded_channel::<Line>();
    let reader = std::thread::spawn(move || -> anyhow::Result<()> {
        for line in std::io::stdin().lock().lines() {
            if orders.send(serde_json::from_str(&line?)?).is_err() {
                break;
            }
        }
        Ok(())
    });
    runtime.block_on(async move {
        let prober = Arc::new(Prober::default());
        while let Some(Line { id, order, limit }) = arrived.recv().await {
            let prober = Arc::clone(&prober);
            tokio::spawn(async move {
                let answer = Answer { id, told: prober.run(order, limit).await };
                if let Ok(text) = serde_json::to_string(&answer) {
                    // Whoever closed the pipe wants no answer, and closes standard input too.
                    let _unheard = writeln!(std::io::stdout(), "{text}");
                }
            });
        }
    });
    reader.join().map_err(|_| anyhow::anyhow!("the reader of orders panicked"))?
}
