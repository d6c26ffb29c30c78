//! Clients of every kind behind one interface: pods, processes of a node itself, hosts outside.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use tokio::sync::oneshot;

use super::{Node, Pod, agent::program_beside, process::Running, run::Run};
use crate::{
    netns::{Namespace, lock},
    workload::{
        DEFAULT_TIMEOUT, NetError, Told, UdpKind,
        probe::{Answer, Line, Order, Prober},
    },
};

/// A client of some place in the network; clones are handles to the same one and share its process.
///
/// A call opens a socket of its own and waits [`DEFAULT_TIMEOUT`] at most, unless [`Caller::within`] says less. A reply is
/// what the application saw: an answer, or the [`NetError`] of its system call.
#[derive(Clone)]
pub struct Caller {
    name: String,
    place: Place,
    limit: Duration,
    source_port: u16,
}

#[derive(Clone)]
enum Place {
    /// A namespace, by its thread in this process.
    Thread(Namespace, Arc<Prober>),
    /// A process of its own: it counts to a node's cgroup.
    Process(Arc<HostProcess>),
}

impl Caller {
    /// A client in this namespace (a pod's, or that of a host outside), inside the test process. Its sockets are in no
    /// node's cgroup: for the node itself take [`Caller::on_node`].
    pub fn at(name: impl Into<String>, place: &impl AsRef<Namespace>) -> Self {
        Self::new(name, Place::Thread(place.as_ref().clone(), Arc::default()))
    }

    /// A process of the node itself, as a hostNetwork pod's: in the node's network namespace and in its cgroup.
    ///
    /// # Errors
    /// The program `lb-probe` is missing, or cannot be started.
    pub fn on_node(node: &Node) -> anyhow::Result<Self> {
        let program = program_beside("lb-probe")?;
        let process = HostProcess::start(node.prepare(&[&program], &[])?, &node.0.run)?;
        Ok(Self::new(format!("a process of {}", node.name()), Place::Process(Arc::new(process))))
    }

    /// A process of a pod: in its namespace and in its node's cgroup, as with `--socket-lb=all`.
    ///
    /// # Errors
    /// The program `lb-probe` is missing, or cannot be started.
    pub fn in_pod(pod: &Pod) -> anyhow::Result<Self> {
        let program = program_beside("lb-probe")?;
        let process = HostProcess::start(pod.command(&[&program], &[])?, &pod.0.run)?;
        Ok(Self::new(format!("a process of pod {}", pod.name()), Place::Process(Arc::new(process))))
    }

    fn new(name: impl Into<String>, place: Place) -> Self {
        Self { name: name.into(), place, limit: DEFAULT_TIMEOUT, source_port: 0 }
    }

    /// Who it is, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same client with less (or more) patience.
    #[must_use]
    pub fn within(&self, limit: Duration) -> Self {
        Self { limit, ..self.clone() }
    }

    /// The same client, asking from this port. Its TCP connections end with a reset, so that the port is free at once.
    #[must_use]
    pub fn from_port(&self, source_port: u16) -> Self {
        Self { source_port, ..self.clone() }
    }

    /// A GET request on a connection of its own.
    ///
    /// # Errors
    /// As the application would see it.
    pub async fn http(&self, to: SocketAddr, path: &str) -> Result<Told, NetError> {
        self.order(Order::Http { to, path: path.to_owned(), source_port: self.source_port }).await
    }

    /// Opens a TCP connection and closes it.
    ///
    /// # Errors
    /// As the application would see it.
    pub async fn connect(&self, to: SocketAddr) -> Result<Told, NetError> {
        self.order(Order::Connect { to, source_port: self.source_port }).await
    }

    /// A datagram from a socket of its own (connected), and the answer.
    ///
    /// # Errors
    /// As the application would see it.
    pub async fn datagram(&self, to: SocketAddr, message: &str) -> Result<String, NetError> {
        self.udp(to).await?.ask(message).await
    }

    /// The name of the netexec server that answers over TCP.
    ///
    /// # Errors
    /// As the application would see it, and an HTTP status other than 200.
    pub async fn hostname(&self, to: SocketAddr) -> Result<String, NetError> {
        ok(self.http(to, "/hostname").await?)
    }

    /// Under which address and port the netexec server sees this client, over TCP.
    ///
    /// # Errors
    /// As the application would see it, and an answer that is no address.
    pub async fn client_ip(&self, to: SocketAddr) -> Result<SocketAddr, NetError> {
        address(&ok(self.http(to, "/clientip").await?)?)
    }

    /// As [`Caller::hostname`], over UDP.
    ///
    /// # Errors
    /// As the application would see it.
    pub async fn udp_hostname(&self, to: SocketAddr) -> Result<String, NetError> {
        self.datagram(to, "hostname").await
    }

    /// As [`Caller::client_ip`], over UDP.
    ///
    /// # Errors
    /// As the application would see it, and an answer that is no address.
    pub async fn udp_client_ip(&self, to: SocketAddr) -> Result<SocketAddr, NetError> {
        address(&self.datagram(to, "clientip").await?)
    }

    /// An HTTP connection that stays open.
    ///
    /// # Errors
    /// As the application would see it.
    pub async fn http_flow(&self, to: SocketAddr) -> Result<HttpFlow, NetError> {
        let told = self.order(Order::HttpOpen { to, source_port: self.source_port }).await?;
        Ok(HttpFlow(self.opened(told)))
    }

    /// A connected UDP socket that stays open.
    ///
    /// # Errors
    /// As the application would see it.
    pub async fn udp(&self, to: SocketAddr) -> Result<UdpFlow, NetError> {
        self.udp_of_kind(to, UdpKind::Connected).await
    }

    /// A UDP socket that stays open, and speaks to its Service in this way.
    ///
    /// # Errors
    /// As the application would see it.
    pub async fn udp_of_kind(&self, to: SocketAddr, kind: UdpKind) -> Result<UdpFlow, NetError> {
        let told = self.order(Order::UdpOpen { to, source_port: self.source_port, kind }).await?;
        Ok(UdpFlow(self.opened(told)))
    }

    fn opened(&self, told: Told) -> Opened {
        Opened { caller: self.clone(), number: told.flow, local: told.local, peer: told.peer }
    }

    async fn order(&self, order: Order) -> Result<Told, NetError> {
        let limit = self.limit;
        match &self.place {
            Place::Thread(namespace, prober) => {
                let prober = Arc::clone(prober);
                namespace.run(async move { prober.run(order, limit).await }).await
            }
            Place::Process(process) => process.order(order, limit).await,
        }
    }
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Caller").field(&self.name).finish()
    }
}

fn ok(told: Told) -> Result<String, NetError> {
    if told.status == 200 {
        Ok(told.body)
    } else {
        Err(NetError::BadAnswer(format!("status {}", told.status)))
    }
}

fn address(text: &str) -> Result<SocketAddr, NetError> {
    text.parse().map_err(|error| NetError::BadAnswer(format!("{text}: {error}")))
}

/// A socket kept open for a caller; closed when dropped.
struct Opened {
    caller: Caller,
    number: u64,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        let order = Order::Close { flow: self.number };
        match &self.caller.place {
            Place::Thread(namespace, prober) => {
                let prober = Arc::clone(prober);
                // On the thread that owns the socket; it is gone with its namespace otherwise.
                namespace.handle().spawn(async move { drop(prober.run(order, DEFAULT_TIMEOUT).await) });
            }
            Place::Process(process) => process.tell(order),
        }
    }
}

/// An open HTTP connection.
pub struct HttpFlow(Opened);

impl HttpFlow {
    /// Asks for a path on it and returns the body.
    ///
    /// # Errors
    /// As the application would see it, and an HTTP status other than 200.
    pub async fn get(&self, path: &str) -> Result<String, NetError> {
        ok(self.0.caller.order(Order::HttpGet { flow: self.0.number, path: path.to_owned() }).await?)
    }

    /// The client's own end.
    pub fn local(&self) -> Option<SocketAddr> {
        self.0.local
    }

    /// The other end, as `getpeername` tells it.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.0.peer
    }
}

/// An open UDP socket.
pub struct UdpFlow(Opened);

impl UdpFlow {
    /// Sends a datagram and waits for one.
    ///
    /// # Errors
    /// As the application would see it.
    pub async fn ask(&self, message: &str) -> Result<String, NetError> {
        Ok(self.ask_from(message).await?.body)
    }

    /// As [`UdpFlow::ask`], with what the kernel says about where the answer came from.
    ///
    /// # Errors
    /// As the application would see it.
    pub async fn ask_from(&self, message: &str) -> Result<Told, NetError> {
        self.0.caller.order(Order::UdpAsk { flow: self.0.number, message: message.to_owned() }).await
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// As the application would see it, the error of an earlier datagram included.
    pub async fn send(&self, message: &str) -> Result<(), NetError> {
        self.0
            .caller
            .order(Order::UdpSend { flow: self.0.number, message: message.to_owned() })
            .await
            .map(drop)
    }

    /// Waits for a datagram.
    ///
    /// # Errors
    /// As the application would see it.
    pub async fn receive(&self) -> Result<Told, NetError> {
        self.0.caller.order(Order::UdpReceive { flow: self.0.number }).await
    }

    /// The client's own end.
    pub fn local(&self) -> Option<SocketAddr> {
        self.0.local
    }

    /// The other end, as `getpeername` tells it.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.0.peer
    }
}

/// Who waits for the answer to which order.
type Waiting = HashMap<u64, oneshot::Sender<Result<Told, NetError>>>;

/// A running `lb-probe`. It ends when this is dropped, and when this process ends: its standard input is closed then.
struct HostProcess {
    running: Arc<Running>,
    input: Mutex<ChildStdin>,
    waiting: Arc<Mutex<Waiting>>,
    next: AtomicU64,
}

impl HostProcess {
    fn start(mut command: Command, run: &Run) -> anyhow::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let running = Arc::new(Running::new(child));
        run.register(&running)?;
        let input = Mutex::new(input.context("no standard input")?);
        let output = BufReader::new(output.context("no standard output")?);
        let waiting: Arc<Mutex<Waiting>> = Arc::default();
        let expected = Arc::clone(&waiting);
        thread::Builder::new().name("lb-probe answers".to_owned()).spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let Ok(Answer { id, told }) = serde_json::from_str(&line) else { continue };
                if let Some(waiter) = lock(&expected).remove(&id) {
                    // It may have stopped waiting.
                    let _unheard = waiter.send(told);
                }
            }
            // Whoever still waits learns that the process is gone.
            lock(&expected).clear();
        })?;
        Ok(Self { running, input, waiting, next: AtomicU64::new(0) })
    }

    async fn order(&self, order: Order, limit: Duration) -> Result<Told, NetError> {
        let (sender, receiver) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.waiting).insert(id, sender);
        if let Err(error) = self.write(&Line { id, order, limit }) {
            lock(&self.waiting).remove(&id);
            return Err(error);
        }
        receiver.await.unwrap_or_else(|_| Err(NetError::Other("the client process has ended".to_owned())))
    }

    /// Orders something whose outcome nobody waits for.
    fn tell(&self, order: Order) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        // A process that is gone has closed everything already.
        let _gone = self.write(&Line { id, order, limit: DEFAULT_TIMEOUT });
    }

    fn write(&self, line: &Line) -> Result<(), NetError> {
        let mut text = serde_json::to_string(line).map_err(|error| NetError::Other(error.to_string()))?;
        text.push('\n');
        Ok(lock(&self.input).write_all(text.as_bytes())?)
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        self.running.kill();
    }
}
