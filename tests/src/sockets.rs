//! System calls on sockets, one by one, made by a process that the kernel counts to a node's cgroup.
//!
//! [`Sockets`] is the test's side. The other one is the program `lb-sockets`: it makes each call as a plain blocking one
//! and tells what the kernel answered, the error number included. One JSON object a line, in turn.

use std::{
    collections::HashMap,
    fmt,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

mod errors;

use anyhow::Context as _;
pub use errors::Told;
use serde::{Deserialize, Serialize};

use crate::{
    lab::{Client, Node, Pod, program_beside},
    netns::lock,
};

/// How long a call may block before it counts as unanswered.
const PATIENCE: Duration = Duration::from_secs(2);

/// A system call.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Call {
    /// `socket` and `connect` of TCP.
    Stream {
        to: SocketAddr,
    },
    /// `socket` and `bind` of UDP.
    Datagrams {
        v6: bool,
        port: u16,
    },
    Connect {
        socket: u64,
        to: SocketAddr,
    },
    SendTo {
        socket: u64,
        to: SocketAddr,
        text: String,
    },
    Send {
        socket: u64,
        text: String,
    },
    ReceiveFrom {
        socket: u64,
    },
    Receive {
        socket: u64,
    },
    PeerName {
        socket: u64,
    },
    /// `setsockopt`: no fragments, and all errors.
    Strict {
        socket: u64,
    },
    /// `setsockopt`: hops.
    Hops {
        socket: u64,
        hops: u8,
    },
    /// `getsockopt`: the path MTU.
    Mtu {
        socket: u64,
    },
    /// `recvmsg` of the error queue.
    Told {
        socket: u64,
    },
    Close {
        socket: u64,
    },
}

/// What a call returned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Returned {
    socket: u64,
    text: String,
    address: Option<SocketAddr>,
    mtu: u32,
    told: Option<Told>,
}

/// An error number, or that there was no answer in time.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}", io::Error::from_raw_os_error(*.0))]
pub struct Errno(pub i32);

impl Errno {
    /// No answer in time.
    pub const NO_ANSWER: Self = Self(libc::EAGAIN);
    /// `ECONNREFUSED`.
    pub const REFUSED: Self = Self(libc::ECONNREFUSED);
    /// `ETIMEDOUT`, told at once.
    pub const TIMED_OUT: Self = Self(libc::ETIMEDOUT);
    /// `EMSGSIZE`.
    pub const TOO_LONG: Self = Self(libc::EMSGSIZE);
    /// `EHOSTUNREACH`.
    pub const HOST_UNREACHABLE: Self = Self(libc::EHOSTUNREACH);
    /// `EDESTADDRREQ`: a UDP socket that is not connected.
    pub const NOT_CONNECTED: Self = Self(libc::EDESTADDRREQ);
    /// `ECONNABORTED`.
    pub const ABORTED: Self = Self(libc::ECONNABORTED);
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({self})", self.0)
    }
}

/// A process that makes system calls on sockets.
pub struct Sockets {
    child: Mutex<Child>,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

/// A socket of such a process; closed when dropped.
pub struct Socket<'p> {
    process: &'p Sockets,
    number: u64,
}

impl Sockets {
    /// In the network namespace of the node and in its cgroup.
    ///
    /// # Errors
    /// The program `lb-sockets` is missing, or cannot be started.
    pub fn on_node(node: &Node) -> anyhow::Result<Self> {
        Self::start(&mut node.prepare(&[&program_beside("lb-sockets")?], &[])?)
    }

    /// In the network namespace of the pod and in the cgroup of its node.
    ///
    /// # Errors
    /// As [`Sockets::on_node`].
    pub fn in_pod(pod: &Pod) -> anyhow::Result<Self> {
        Self::start(&mut pod.command(&[&program_beside("lb-sockets")?], &[])?)
    }

    /// On a host outside the cluster.
    ///
    /// # Errors
    /// As [`Sockets::on_node`].
    pub fn outside(client: &Client) -> anyhow::Result<Self> {
        Self::start(&mut client.command(&[&program_beside("lb-sockets")?], &[])?)
    }

    /// Where the command leads, which has to end in the program `lb-sockets`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let input = child.stdin.take().context("no standard input")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { child: Mutex::new(child), pipes: Mutex::new((input, output)) })
    }

    /// A TCP connection; an IPv4 address in IPv6 notation makes it one of an IPv6 socket.
    ///
    /// # Errors
    /// That of `connect`.
    pub fn stream(&self, to: SocketAddr) -> Result<Socket<'_>, Errno> {
        Ok(self.socket(self.call(&Call::Stream { to })?))
    }

    /// A UDP socket of the family that fits the address.
    ///
    /// # Errors
    /// That of `socket` or `bind`.
    pub fn datagrams(&self, like: SocketAddr) -> Result<Socket<'_>, Errno> {
        self.bound(like, 0)
    }

    /// A UDP socket of the family that fits the address, bound to a port of all addresses.
    ///
    /// # Errors
    /// That of `socket` or `bind`.
    pub fn bound(&self, like: SocketAddr, port: u16) -> Result<Socket<'_>, Errno> {
        Ok(self.socket(self.call(&Call::Datagrams { v6: like.is_ipv6(), port })?))
    }

    /// A UDP socket connected to an address.
    ///
    /// # Errors
    /// That of `connect`, too.
    pub fn connected(&self, to: SocketAddr) -> Result<Socket<'_>, Errno> {
        let socket = self.datagrams(to)?;
        socket.connect(to)?;
        Ok(socket)
    }

    fn socket(&self, returned: Returned) -> Socket<'_> {
        Socket { process: self, number: returned.socket }
    }

    /// # Panics
    /// The process has ended.
    fn call(&self, call: &Call) -> Result<Returned, Errno> {
        let mut pipes = lock(&self.pipes);
        let mut line = serde_json::to_string(call).expect("a call is plain data");
        line.push('\n');
        pipes.0.write_all(line.as_bytes()).expect("lb-sockets has ended");
        line.clear();
        pipes.1.read_line(&mut line).expect("lb-sockets has ended");
        serde_json::from_str(&line).expect("lb-sockets has ended")
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        // Both fail only for a process that has ended already.
        let _ended = child.kill();
        let _reaped = child.wait();
    }
}

impl Socket<'_> {
    /// `connect`.
    ///
    /// # Errors
    /// As the application sees it, here and below.
    pub fn connect(&self, to: SocketAddr) -> Result<(), Errno> {
        self.call(|socket| Call::Connect { socket, to }).map(drop)
    }

    /// `sendto`.
    ///
    /// # Errors
    /// See [`Socket::connect`].
    pub fn send_to(&self, to: SocketAddr, text: &str) -> Result<(), Errno> {
        self.call(|socket| Call::SendTo { socket, to, text: text.to_owned() }).map(drop)
    }

    /// `send`.
    ///
    /// # Errors
    /// See [`Socket::connect`].
    pub fn send(&self, text: &str) -> Result<(), Errno> {
        self.call(|socket| Call::Send { socket, text: text.to_owned() }).map(drop)
    }

    /// `recvfrom`: a datagram, and where it came from.
    ///
    /// # Errors
    /// See [`Socket::connect`].
    pub fn receive_from(&self) -> Result<(String, SocketAddr), Errno> {
        let returned = self.call(|socket| Call::ReceiveFrom { socket })?;
        Ok((returned.text, returned.address.ok_or(Errno::NO_ANSWER)?))
    }

    /// `recv`.
    ///
    /// # Errors
    /// See [`Socket::connect`].
    pub fn receive(&self) -> Result<String, Errno> {
        Ok(self.call(|socket| Call::Receive { socket })?.text)
    }

    /// `getpeername`.
    ///
    /// # Errors
    /// See [`Socket::connect`].
    pub fn peer(&self) -> Result<SocketAddr, Errno> {
        self.call(|socket| Call::PeerName { socket })?.address.ok_or(Errno::NO_ANSWER)
    }

    /// Makes it the socket of an application that sizes its datagrams itself: none is fragmented, and all errors are kept
    /// for [`Socket::told`].
    ///
    /// # Errors
    /// That of `setsockopt`.
    pub fn make_strict(&self) -> Result<(), Errno> {
        self.call(|socket| Call::Strict { socket }).map(drop)
    }

    /// Lets what it sends live for that many hops.
    ///
    /// # Errors
    /// That of `setsockopt`.
    pub fn set_hops(&self, hops: u8) -> Result<(), Errno> {
        self.call(|socket| Call::Hops { socket, hops }).map(drop)
    }

    /// The path MTU towards its peer.
    ///
    /// # Errors
    /// That of `getsockopt`.
    pub fn mtu(&self) -> Result<u32, Errno> {
        Ok(self.call(|socket| Call::Mtu { socket })?.mtu)
    }

    /// Waits for the next entry of its error queue.
    ///
    /// # Errors
    /// That of `recvmsg`.
    pub fn told(&self) -> Result<Told, Errno> {
        self.call(|socket| Call::Told { socket })?.told.ok_or(Errno::NO_ANSWER)
    }

    /// `sendto`, then `recvfrom`.
    ///
    /// # Errors
    /// See [`Socket::connect`].
    pub fn ask_at(&self, to: SocketAddr, text: &str) -> Result<(String, SocketAddr), Errno> {
        self.send_to(to, text)?;
        self.receive_from()
    }

    /// `send`, then `recv`.
    ///
    /// # Errors
    /// See [`Socket::connect`].
    pub fn ask(&self, text: &str) -> Result<String, Errno> {
        self.send(text)?;
        self.receive()
    }

    fn call(&self, call: impl FnOnce(u64) -> Call) -> Result<Returned, Errno> {
        self.process.call(&call(self.number))
    }
}

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        // A socket that is not there needs no closing.
        let _closed = self.call(|socket| Call::Close { socket });
    }
}

/// The program `lb-sockets`: makes calls until standard input is closed.
///
/// # Errors
/// Standard input or output broke, or a line is no call.
pub fn serve() -> anyhow::Result<()> {
    let mut server = Server::default();
    for line in io::stdin().lock().lines() {
        let answer = server.make(serde_json::from_str(&line?)?).map_err(|error| {
            let number = error.raw_os_error().unwrap_or(match error.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => libc::EAGAIN,
                _ => libc::EIO,
            });
            Errno(number)
        });
        let mut text = serde_json::to_string(&answer)?;
        text.push('\n');
        io::stdout().write_all(text.as_bytes())?;
        io::stdout().flush()?;
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Server {
    sockets: HashMap<u64, Open>,
    next: u64,
}

#[derive(Debug)]
enum Open {
    Stream(TcpStream),
    Datagrams(UdpSocket),
}

impl Server {
    fn make(&mut self, call: Call) -> io::Result<Returned> {
        let mut returned = Returned::default();
        match call {
            Call::Stream { to } => {
                let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                returned.socket = self.keep(Open::Stream(stream));
            }
            Call::Datagrams { v6, port } => {
                let any = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
                let socket = UdpSocket::bind(SocketAddr::new(any, port))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                returned.socket = self.keep(Open::Datagrams(socket));
            }
            Call::Connect { socket, to } => self.datagrams(socket)?.connect(to)?,
            Call::SendTo { socket, to, text } => {
                self.datagrams(socket)?.send_to(text.as_bytes(), to)?;
            }
            Call::Send { socket, text } => match self.open(socket)? {
                Open::Stream(stream) => stream.write_all(text.as_bytes())?,
                Open::Datagrams(socket) => drop(socket.send(text.as_bytes())?),
            },
            Call::ReceiveFrom { socket } => {
                let mut buffer = vec![0; 65_536];
                let (length, from) = self.datagrams(socket)?.recv_from(&mut buffer)?;
                returned.text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                returned.address = Some(from);
            }
            Call::Receive { socket } => {
                let mut buffer = vec![0; 65_536];
                let length = match self.open(socket)? {
                    Open::Stream(stream) => stream.read(&mut buffer)?,
                    Open::Datagrams(socket) => socket.recv(&mut buffer)?,
                };
                returned.text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            }
            Call::PeerName { socket } => {
                returned.address = Some(match self.open(socket)? {
                    Open::Stream(stream) => stream.peer_addr()?,
                    Open::Datagrams(socket) => socket.peer_addr()?,
                });
            }
            Call::Strict { socket } => errors::make_strict(self.datagrams(socket)?)?,
            Call::Hops { socket, hops } => errors::set_hops(self.datagrams(socket)?, hops)?,
            Call::Mtu { socket } => returned.mtu = errors::mtu(self.datagrams(socket)?)?,
            Call::Told { socket } => {
                returned.told = Some(errors::next(self.datagrams(socket)?, PATIENCE)?);
            }
            Call::Close { socket } => drop(self.sockets.remove(&socket)),
        }
        Ok(returned)
    }

    fn keep(&mut self, open: Open) -> u64 {
        self.next += 1;
        self.sockets.insert(self.next, open);
        self.next
    }

    fn open(&mut self, socket: u64) -> io::Result<&mut Open> {
        self.sockets.get_mut(&socket).ok_or(io::Error::from_raw_os_error(libc::EBADF))
    }

    fn datagrams(&mut self, socket: u64) -> io::Result<&UdpSocket> {
        match self.open(socket)? {
            Open::Datagrams(socket) => Ok(socket),
            Open::Stream(_) => Err(io::Error::from_raw_os_error(libc::ENOTSOCK)),
        }
    }
}
