//! A client that keeps asking and writes down what happened.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use hyper::{Method, StatusCode};
use tokio::{net::UdpSocket, sync::watch, task::JoinHandle};

use super::{
    DEFAULT_TIMEOUT, NetError,
    http::{Open, Target},
    in_time, resolve,
    tcp::TcpOptions,
};
use crate::netns::{Namespace, lock};

/// Description of a request loop: one request at a time, the next one `interval` after the last began (at once, if the
/// answer took longer). The body of an answer names the backend.
#[derive(Debug, Clone)]
pub struct Load {
    kind: Kind,
    interval: Duration,
    timeout: Duration,
    tcp: TcpOptions,
}

#[derive(Debug, Clone)]
enum Kind {
    NewConnections { url: String },
    KeepAlive { url: String },
    Udp { host: String, port: u16, message: String, one_socket: bool },
}

impl Load {
    /// HTTP requests, each on a new connection.
    pub fn http(url: &str) -> Self {
        Self::of(Kind::NewConnections { url: url.to_owned() })
    }

    /// HTTP requests on one connection; a new one is opened after a failure.
    pub fn keep_alive(url: &str) -> Self {
        Self::of(Kind::KeepAlive { url: url.to_owned() })
    }

    /// Datagrams `hostname`, each from a new socket.
    pub fn udp(host: &str, port: u16) -> Self {
        let (host, message) = (host.to_owned(), "hostname".to_owned());
        Self::of(Kind::Udp { host, port, message, one_socket: false })
    }

    /// Datagrams `hostname`, all from one connected socket, as long-lived UDP clients do.
    pub fn udp_one_socket(host: &str, port: u16) -> Self {
        let (host, message) = (host.to_owned(), "hostname".to_owned());
        Self::of(Kind::Udp { host, port, message, one_socket: true })
    }

    fn of(kind: Kind) -> Self {
        Self {
            kind,
            interval: Duration::from_millis(5),
            timeout: DEFAULT_TIMEOUT,
            tcp: TcpOptions::default(),
        }
    }

    /// The time from the beginning of one request to the beginning of the next; 5 ms, unless told otherwise.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// How long a request may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How connections (and UDP sockets) are opened: source address and port.
    #[must_use]
    pub fn tcp(mut self, options: TcpOptions) -> Self {
        self.tcp = options;
        self
    }

    /// Starts asking, until [`RunningLoad::stop`].
    pub fn start(&self, at: &impl AsRef<Namespace>) -> RunningLoad {
        let namespace = at.as_ref();
        let report = Arc::new(Mutex::new(LoadReport::default()));
        let (stop, stopped) = watch::channel(false);
        let asking = Asking {
            load: self.clone(),
            namespace: namespace.name().to_owned(),
            connection: None,
            socket: None,
        };
        let task = namespace.handle().spawn(asking.run(Arc::clone(&report), stopped));
        RunningLoad { report, stop, task, _namespace: namespace.clone() }
    }
}

/// A request loop under way. Dropping it ends it.
#[derive(Debug)]
pub struct RunningLoad {
    report: Arc<Mutex<LoadReport>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    _namespace: Namespace,
}

impl RunningLoad {
    /// What happened until now.
    pub fn report(&self) -> LoadReport {
        let mut report = lock(&self.report).clone();
        report.close(Instant::now());
        report
    }

    /// Waits until so many requests were answered in total.
    ///
    /// # Errors
    /// They were not after `limit`; the error carries the report.
    pub async fn wait_for(&self, successes: u64, limit: Duration) -> anyhow::Result<LoadReport> {
        let begin = Instant::now();
        loop {
            let report = self.report();
            if report.successes() >= successes {
                return Ok(report);
            }
            anyhow::ensure!(begin.elapsed() < limit, "not {successes} answers after {limit:?}: {report}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Finishes the request under way and returns what happened.
    pub async fn stop(mut self) -> LoadReport {
        self.stop.send_replace(true);
        // It panics only when the namespace went away: then the report says what happened until then.
        let _ended = (&mut self.task).await;
        self.report()
    }
}

impl Drop for RunningLoad {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A request that got no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// When it was sent, since the loop began.
    pub at: Duration,
    /// How long the client waited.
    pub after: Duration,
    /// Why it failed.
    pub reason: NetError,
}

/// What a request loop saw.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    /// Requests that failed, in order.
    pub failures: Vec<Failure>,
    /// Answers by backend.
    pub by_backend: BTreeMap<String, u64>,
    /// Time from request to complete answer of every success, in order.
    pub latencies: Vec<Duration>,
    /// The longest time without an answer: between two of them, before the first, after the last.
    pub longest_gap: Duration,
    /// How many connections (or sockets) were opened.
    pub connections: u64,
    begin: Option<Instant>,
    last_answer: Option<Instant>,
}

impl LoadReport {
    /// How many requests were answered.
    pub fn successes(&self) -> u64 {
        self.latencies.len() as u64
    }

    /// How many requests were sent.
    pub fn requests(&self) -> u64 {
        self.successes() + self.failures.len() as u64
    }

    /// The median latency.
    pub fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    /// The latency that 99 of 100 answers did not exceed.
    pub fn p99(&self) -> Duration {
        self.quantile(0.99)
    }

    /// The latency that this share of answers did not exceed; zero without answers.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    fn record(&mut self, sent: Instant, outcome: Result<String, NetError>) {
        let begin = *self.begin.get_or_insert(sent);
        let now = Instant::now();
        match outcome {
            Ok(backend) => {
                self.close(now);
                self.last_answer = Some(now);
                *self.by_backend.entry(backend).or_default() += 1;
                self.latencies.push(now - sent);
            }
            Err(reason) => {
                self.failures.push(Failure { at: sent - begin, after: now - sent, reason });
            }
        }
    }

    /// Counts the time since the last answer.
    fn close(&mut self, now: Instant) {
        if let Some(since) = self.last_answer.or(self.begin) {
            self.longest_gap = self.longest_gap.max(now.saturating_duration_since(since));
        }
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests, {} failed, longest gap {:.1?}, median {:.1?}, p99 {:.1?}, backends",
            self.requests(),
            self.failures.len(),
            self.longest_gap,
            self.median(),
            self.p99()
        )?;
        for (backend, answers) in &self.by_backend {
            write!(f, " {backend}={answers}")?;
        }
        for failure in self.failures.iter().take(5) {
            write!(f, "; at {:.1?} after {:.1?}: {}", failure.at, failure.after, failure.reason)?;
        }
        Ok(())
    }
}

/// The loop itself, on the runtime of its namespace.
struct Asking {
    load: Load,
    namespace: String,
    connection: Option<Open>,
    socket: Option<UdpSocket>,
}

impl Asking {
    async fn run(mut self, report: Arc<Mutex<LoadReport>>, mut stopped: watch::Receiver<bool>) {
        while !*stopped.borrow() {
            let sent = Instant::now();
            lock(&report).begin.get_or_insert(sent);
            let (limit, mut opened) = (self.load.timeout, 0);
            let outcome = in_time(limit, self.ask(&mut opened)).await;
            if outcome.is_err() {
                (self.connection, self.socket) = (None, None);
            }
            {
                let mut report = lock(&report);
                report.connections += opened;
                report.record(sent, outcome);
            }
            let pause = self.load.interval.saturating_sub(sent.elapsed());
            // An error means that nobody is interested any more: the task is being aborted.
            let _stopped = tokio::time::timeout(pause, stopped.wait_for(|stop| *stop)).await;
        }
    }

    async fn ask(&mut self, opened: &mut u64) -> Result<String, NetError> {
        match self.load.kind.clone() {
            Kind::NewConnections { url } => {
                let target = Target::parse(&url)?;
                *opened += 1;
                let mut connection = Open::new(&self.namespace, &target, self.load.tcp).await?;
                body(connection.ask(&target.path, Method::GET, true).await?)
            }
            Kind::KeepAlive { url } => {
                let target = Target::parse(&url)?;
                let connection = match &mut self.connection {
                    Some(connection) => connection,
                    None => {
                        *opened += 1;
                        self.connection.insert(Open::new(&self.namespace, &target, self.load.tcp).await?)
                    }
                };
                body(connection.ask(&target.path, Method::GET, false).await?)
            }
            Kind::Udp { host, port, message, one_socket } => {
                let socket = match self.socket.take().filter(|_| one_socket) {
                    Some(socket) => socket,
                    None => {
                        *opened += 1;
                        self.open_udp(&host, port).await?
                    }
                };
                let socket = self.socket.insert(socket);
                socket.send(message.as_bytes()).await?;
                let mut buffer = [0; 2048];
                let length = socket.recv(&mut buffer).await?;
                Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
            }
        }
    }

    async fn open_udp(&self, host: &str, port: u16) -> Result<UdpSocket, NetError> {
        let addresses = resolve::lookup(&self.namespace, host).await?;
        let to = addresses.first().ok_or_else(|| NetError::Dns(format!("{host}: no address")))?;
        let from = self.load.tcp.source.unwrap_or_else(|| crate::lab::any_like(*to));
        let socket = UdpSocket::bind(SocketAddr::new(from, self.load.tcp.source_port)).await?;
        socket.connect(SocketAddr::new(*to, port)).await?;
        Ok(socket)
    }
}

fn body(response: super::Response) -> Result<String, NetError> {
    if response.status == StatusCode::OK {
        Ok(response.text())
    } else {
        Err(NetError::BadAnswer(format!("status {}", response.status)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_failures_are_reported() {
        let mut report = LoadReport::default();
        assert_eq!(report.p99(), Duration::ZERO);
        report.latencies = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(report.median(), Duration::from_millis(50));
        assert_eq!(report.p99(), Duration::from_millis(99));
        assert_eq!(report.quantile(1.0), Duration::from_millis(100));
        report.record(Instant::now(), Err(NetError::Refused));
        assert_eq!((report.requests(), report.failures.len()), (101, 1));
        assert!(report.to_string().contains("connection refused"), "{report}");
    }

    #[test]
    fn the_longest_gap_includes_the_time_without_any_answer() {
        let mut report = LoadReport::default();
        let begin = Instant::now();
        report.begin = Some(begin);
        report.close(begin + Duration::from_millis(30));
        assert_eq!(report.longest_gap, Duration::from_millis(30));
        report.last_answer = Some(begin + Duration::from_millis(30));
        report.close(begin + Duration::from_millis(40));
        assert_eq!(report.longest_gap, Duration::from_millis(30));
    }
}
