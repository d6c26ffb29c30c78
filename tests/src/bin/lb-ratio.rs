//! Measures a Service against the same two pods without one: no load balancer, iptables rules as kube-proxy writes them,
//! and the agent in both forwarding modes, interleaved in one run, both ends pinned to one core.
//!
//! Absolute figures of a shared machine drift; the ratios inside a round do not. One core for both ends makes a figure the
//! CPU cost of a transaction.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lb_tests::lab::{AgentOptions, Family, Lab, Node, Pod, Shape};
use lb_tests::netns::run_in;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 100);
const VIP_PORT: u16 = 80;
/// The server's TCP port for clients that come directly.
const DIRECT_PORT: u16 = 8080;
/// Its TCP port behind the Service. Another one, because a client's clock for TCP timestamps runs by destination: a port
/// that waits for its last segment would take a connection through the Service for an old one of a direct client.
const TCP_PORT: u16 = 8090;
const UDP_PORT: u16 = 8080;
/// Request to which the server answers and keeps the connection.
const KEEP: u8 = 1;
/// Request to which the server answers and closes, so that the waiting time of closed connections is spent on its side:
/// clients that run out of ports would measure their search for one.
const CLOSE: u8 = 2;

/// Compare a Service with no Service: no load balancer, iptables, and the agent in both forwarding modes.
#[derive(Parser)]
struct Args {
    /// Rounds; each measures every mode once.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Milliseconds for one measurement.
    #[arg(long, default_value_t = 700)]
    millis: u64,
    /// Measure only what has this in its name (`TCP_RR`, `connect`, `UDP`).
    #[arg(long, default_value = "")]
    only: String,
    /// Pods behind a bridge instead of routed ones.
    #[arg(long)]
    bridged: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Direct,
    Iptables,
    Stack,
    Redirect,
}

const MODES: [Mode; 4] = [Mode::Direct, Mode::Iptables, Mode::Stack, Mode::Redirect];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct, no load balancer",
            Self::Iptables => "iptables DNAT, 2 endpoints",
            Self::Stack => "lb-agent, stack",
            Self::Redirect => "lb-agent, redirect",
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    TcpRr,
    TcpCrr,
    UdpRr,
}

const KINDS: [(Kind, &str); 3] =
    [(Kind::TcpRr, "TCP_RR"), (Kind::TcpCrr, "connect+RR+close"), (Kind::UdpRr, "UDP_RR")];

fn main() -> Result<()> {
    let args = Args::parse();
    let shape = if args.bridged { Shape::Bridged } else { Shape::Routed };
    let lab = Lab::builder().shape(shape).family(Family::V4).build()?;
    let node = lab.node(0);
    let (client, server) = (node.pod("client")?, node.pod("server")?);
    client.namespace().sysctl("net/ipv4/ip_local_port_range", "1024 65000")?;
    let stop = AtomicBool::new(false);
    let sum = std::thread::scope(|scope| {
        let (stop, server) = (&stop, &server);
        for port in [DIRECT_PORT, TCP_PORT] {
            scope.spawn(move || run_in(server.namespace(), || serve_tcp(server.address(), port, stop)));
        }
        scope.spawn(move || run_in(server.namespace(), || serve_udp(server.address(), stop)));
        std::thread::sleep(Duration::from_millis(200));
        let sum = rounds(&args, &lab, node, &client, server);
        stop.store(true, Ordering::Relaxed);
        sum
    })?;
    report(&args, &sum);
    Ok(())
}

/// Transactions a second: by kind, by mode, by round.
type Rates = Vec<[Vec<f64>; 4]>;

fn rounds(args: &Args, lab: &Lab, node: &Node, client: &Pod, server: &Pod) -> Result<Rates> {
    let mut rates: Rates = KINDS.iter().map(|_| std::array::from_fn(|_| Vec::new())).collect();
    for round in 0..args.rounds {
        for step in 0..MODES.len() {
            // Another mode begins each round, so that a drift of the machine does not favour one.
            let index = (step + round as usize) % MODES.len();
            let mode = MODES[index];
            let _installed = Installed::new(mode, lab, node, server)?;
            for (kind, (what, name)) in
                KINDS.iter().enumerate().filter(|(_, (_, name))| name.contains(&args.only))
            {
                let rate = measure(*what, mode, args.millis, client, server)
                    .with_context(|| format!("{name} through {}", mode.name()))?;
                rates[kind][index].push(rate);
            }
        }
        eprintln!("round {} of {} done", round + 1, args.rounds);
    }
    Ok(rates)
}

fn report(args: &Args, rates: &Rates) {
    println!(
        "pod to pod on one node, both ends on one core, median of {} rounds; x = ratio to direct",
        args.rounds
    );
    print!("{:<28}", "");
    for (_, name) in KINDS {
        print!(" {name:>26}");
    }
    println!();
    for (index, mode) in MODES.into_iter().enumerate() {
        print!("{:<28}", mode.name());
        for by_mode in rates {
            let ratio = median(by_mode[index].iter().zip(&by_mode[0]).map(|(rate, direct)| rate / direct));
            let rate = median(by_mode[index].iter().copied());
            print!(" {:>26}", format!("{rate:.0} /s  x {ratio:.3}"));
        }
        println!();
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A load balancer that stands until this is dropped.
struct Installed<'a> {
    mode: Mode,
    node: &'a Node,
}

impl<'a> Installed<'a> {
    fn new(mode: Mode, lab: &Lab, node: &'a Node, server: &Pod) -> Result<Self> {
        let installed = Self { mode, node };
        match mode {
            Mode::Direct => {}
            Mode::Iptables => installed.iptables(server)?,
            Mode::Stack => installed.agent(lab, server, "stack")?,
            Mode::Redirect => installed.agent(lab, server, "redirect")?,
        }
        Ok(installed)
    }

    fn exec(&self, argv: &[&str]) -> Result<()> {
        let node = self.node.clone();
        let output = node
            .namespace()
            .block_on({
                let (node, argv) =
                    (node.clone(), argv.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
                async move {
                    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
                    node.exec(&argv, &[], Duration::from_secs(20)).await
                }
            })
            .with_context(|| format!("{argv:?}"))?;
        ensure!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn bpf_root(&self) -> String {
        self.node.bpffs().join("lb-agent").to_string_lossy().into_owned()
    }

    /// The shape kube-proxy writes: services chain, one chain a Service, one an endpoint, masquerading marks. The
    /// second endpoint is the first one's address again, so that both modes talk to the same pod.
    fn iptables(&self, server: &Pod) -> Result<()> {
        let (vip, pod) = (VIP.to_string(), server.address().to_string());
        for protocol in ["tcp", "udp"] {
            let port = if protocol == "tcp" { TCP_PORT } else { UDP_PORT };
            let (to, vport) = (format!("{pod}:{port}"), VIP_PORT.to_string());
            let (svc, one, two) =
                (format!("SVC-{protocol}"), format!("SEP-{protocol}-1"), format!("SEP-{protocol}-2"));
            let nat = |rule: &[&str]| {
                let mut argv = vec!["iptables", "-w", "-t", "nat"];
                argv.extend(rule);
                self.exec(&argv)
            };
            for chain in [&svc, &one, &two] {
                nat(&["-N", chain])?;
            }
            for chain in [&one, &two] {
                nat(&["-A", chain, "-s", &pod, "-j", "MARK", "--or-mark", "0x4000"])?;
                nat(&["-A", chain, "-p", protocol, "-j", "DNAT", "--to-destination", &to])?;
            }
            nat(&["-A", &svc, "-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", &one])?;
            nat(&["-A", &svc, "-j", &two])?;
            nat(&["-A", "PREROUTING", "-d", &vip, "-p", protocol, "--dport", &vport, "-j", &svc])?;
        }
        self.exec(&[
            "iptables",
            "-w",
            "-t",
            "nat",
            "-A",
            "POSTROUTING",
            "-m",
            "mark",
            "--mark",
            "0x4000/0x4000",
            "-j",
            "MASQUERADE",
        ])
    }

    fn agent(&self, lab: &Lab, server: &Pod, forwarding: &str) -> Result<()> {
        let dir = lab.state_dir().join("manifests");
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("service.yaml"), manifest(server.address(), self.node.name()))?;
        let dir = dir.to_string_lossy().into_owned();
        let root = self.bpf_root();
        let args =
            ["run", "--manifests", &dir, "--forwarding", forwarding, "--bpf-root", &root].map(str::to_owned);
        let agent = self.node.start_agent(AgentOptions::new(args))?;
        let namespace = self.node.namespace().clone();
        namespace.block_on(async move {
            agent.wait_ready().await?;
            // The kernel goes on without it, and its threads cannot disturb the measurement.
            agent.sigterm().await.map(|_| ())
        })
    }
}

impl Drop for Installed<'_> {
    fn drop(&mut self) {
        let gone = match self.mode {
            Mode::Direct => Ok(()),
            Mode::Iptables => self
                .exec(&["iptables", "-w", "-t", "nat", "-F"])
                .and_then(|()| self.exec(&["iptables", "-w", "-t", "nat", "-X"])),
            Mode::Stack | Mode::Redirect => lb_tests::lab::agent_binary().and_then(|agent| {
                self.exec(&[&agent.to_string_lossy(), "cleanup", "--bpf-root", &self.bpf_root()])
            }),
        };
        if let Err(error) = gone {
            eprintln!("removing {:?}: {error:#}", self.mode);
        }
    }
}

fn manifest(server: IpAddr, node: &str) -> String {
    let port = |name: &str, protocol: &str, port: u16| {
        format!("{{name: {name}, protocol: {protocol}, port: {port}}}")
    };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: server, namespace: default}}\nspec:\n  clusterIP: {VIP}\n  \
         clusterIPs: [{VIP}]\n  ports:\n  - {{name: tcp, protocol: TCP, port: {VIP_PORT}, targetPort: {TCP_PORT}}}\n  \
         - {{name: udp, protocol: UDP, port: {VIP_PORT}, targetPort: {UDP_PORT}}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: server-1\n  namespace: default\n  \
         labels: {{kubernetes.io/service-name: server}}\naddressType: IPv4\nports: [{}, {}]\nendpoints:\n\
         - {{addresses: [{server}], nodeName: {node}, conditions: {{ready: true}}}}\n",
        port("tcp", "TCP", TCP_PORT),
        port("udp", "UDP", UDP_PORT),
    )
}

fn measure(kind: Kind, mode: Mode, millis: u64, client: &Pod, server: &Pod) -> Result<f64> {
    let target = if mode == Mode::Direct {
        SocketAddr::new(server.address(), if matches!(kind, Kind::UdpRr) { UDP_PORT } else { DIRECT_PORT })
    } else {
        SocketAddr::new(VIP.into(), VIP_PORT)
    };
    let time = Duration::from_millis(millis);
    run_in(client.namespace(), || {
        pin();
        match kind {
            Kind::TcpRr => tcp_rr(target, time),
            Kind::TcpCrr => tcp_crr(target, time),
            Kind::UdpRr => udp_rr(target, time),
        }
    })
}

fn rate(count: u64, start: Instant) -> f64 {
    count as f64 / start.elapsed().as_secs_f64()
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, Duration::from_secs(2))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(stream)
}

fn tcp_rr(target: SocketAddr, time: Duration) -> Result<f64> {
    let mut stream = connect(target)?;
    let (mut byte, mut count) = ([0], 0);
    let start = Instant::now();
    while start.elapsed() < time {
        stream.write_all(&[KEEP])?;
        stream.read_exact(&mut byte)?;
        count += 1;
    }
    Ok(rate(count, start))
}

fn tcp_crr(target: SocketAddr, time: Duration) -> Result<f64> {
    let (mut byte, mut count) = ([0], 0);
    let start = Instant::now();
    while start.elapsed() < time {
        let mut stream = connect(target)?;
        stream.write_all(&[CLOSE])?;
        stream.read_exact(&mut byte)?;
        ensure!(stream.read(&mut byte)? == 0, "the server was to close");
        count += 1;
    }
    Ok(rate(count, start))
}

fn udp_rr(target: SocketAddr, time: Duration) -> Result<f64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let (mut byte, mut count) = ([0], 0);
    let start = Instant::now();
    while start.elapsed() < time {
        socket.send(&[1])?;
        socket.recv(&mut byte)?;
        count += 1;
    }
    Ok(rate(count, start))
}

fn serve_tcp(address: IpAddr, port: u16, stop: &AtomicBool) {
    pin();
    let listener = TcpListener::bind((address, port)).expect("the pod's port is free");
    listener.set_nonblocking(true).expect("a listener can be non-blocking");
    while !stop.load(Ordering::Relaxed) {
        // One client at a time: every measurement opens one connection after the other.
        let Ok((mut stream, _)) = poll_accept(&listener) else { continue };
        let mut byte = [0];
        let _nodelay = stream.set_nodelay(true);
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() && byte[0] == KEEP {}
    }
}

fn poll_accept(listener: &TcpListener) -> std::io::Result<(TcpStream, SocketAddr)> {
    use std::os::fd::AsRawFd as _;
    let mut wait = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd for the duration of the call.
    unsafe { libc::poll(&raw mut wait, 1, 50) };
    let accepted = listener.accept()?;
    accepted.0.set_nonblocking(false)?;
    Ok(accepted)
}

fn serve_udp(address: IpAddr, stop: &AtomicBool) {
    pin();
    let socket = UdpSocket::bind((address, UDP_PORT)).expect("the pod's port is free");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket can have a time-out");
    let mut byte = [0];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((len, from)) = socket.recv_from(&mut byte) {
            let _sent = socket.send_to(&byte[..len], from);
        }
    }
}

/// Keeps the thread on the first core, ahead of whatever else the machine does there.
fn pin() {
    // SAFETY: a zeroed set is an empty one; the calls read it for their duration only.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, -20);
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}
