//! One node with a small connection table, three Services, and ten thousand connections to one of them.

use std::{
    collections::BTreeMap,
    fmt,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lb_agent::dataplane::memory::TableMemory as _;
use lb_agent::dataplane::{Connections, Counters, Maps, Pins, mapped::Access};
use lb_common::layout::{Control, ServiceStat, Table};
use lb_common::proto::{self, tcp};
use lb_tests::cluster::{Cluster, Forwarding, url};
use lb_tests::datapath::packet::{Mac, Packet};
use lb_tests::lab::{Family, KubePod, Process, agent_binary};
use lb_tests::netns::run_in;
use lb_tests::workload::{Frames, checksum_errors};
use serde_json::json;

use crate::forge::{Random, icmp_error};

/// Live connections.
pub(crate) const LIVE: usize = 10_000;
/// Connections to the Service that is attacked.
const ESTABLISHED: usize = 100;
/// Entries of the connection table: a connection has two.
const TABLE: &str = "32768";
/// Longer than an answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
const ECHO: u16 = 7_777;
const NODE_PORT: u16 = 30_080;

type Streams = Arc<Mutex<Vec<TcpStream>>>;

/// The cluster.
pub(crate) struct Site {
    cluster: Cluster,
    /// The client of the live connections and of the new ones.
    pub(crate) client: KubePod,
    attacker: KubePod,
    servers: Vec<KubePod>,
    live: Streams,
    established: Streams,
    maps: Maps,
    _echo: Vec<Process>,
}

fn service(name: &str, kind: &str, ports: &serde_json::Value) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": kind, "selector": {"app": name}, "ports": ports},
    })
}

impl Site {
    pub(crate) async fn new(forwarding: Forwarding) -> Self {
        let cluster = Cluster::builder().nodes(1).clients(1).family(Family::V4).forwarding(forwarding);
        let cluster = cluster.agent_args(["--max-connections", TABLE]).without_dns().start().await.unwrap();
        let http = json!({"name": "http", "port": 80, "targetPort": 8080});
        let echo = |port: u16| json!({"name": "echo", "port": port, "targetPort": ECHO});
        let mut reached = http.clone();
        reached["nodePort"] = NODE_PORT.into();
        let udp = json!({"name": "udp", "port": 81, "targetPort": 8081, "protocol": "UDP"});
        for (name, kind, ports) in [
            ("web", "NodePort", json!([reached, udp, echo(82)])),
            ("calm", "ClusterIP", json!([http])),
            ("live", "ClusterIP", json!([echo(80)])),
        ] {
            cluster.api().create(&service(name, kind, &ports)).unwrap();
        }
        let pod = async |name: &str, app: &str| {
            cluster.netexec_pod("default", name, cluster.node(0), &json!({"app": app})).await.unwrap()
        };
        let mut servers = Vec::new();
        let mut echoes = Vec::new();
        let echo_program = agent_binary().unwrap().with_file_name("lb-echo").display().to_string();
        // Two endpoints each: a connection that is forgotten goes to the wrong one every other time.
        for app in ["web", "calm", "live"] {
            for number in 0..2 {
                let server = pod(&format!("{app}-{number}"), app).await;
                // A process of its own: this one may not have two descriptors for every connection.
                let echo = server.pod().expect("it runs").spawn(&[&echo_program, &ECHO.to_string()], &[]);
                echoes.push(echo.unwrap());
                servers.push(server);
            }
        }
        let (client, attacker) = (pod("client", "client").await, pod("attacker", "attacker").await);
        cluster.settle("default").await.unwrap();
        let maps = Maps::open(&Pins::new(&cluster.bpf_root(cluster.node(0)))).unwrap();
        let mut site = Self {
            cluster,
            client,
            attacker,
            servers,
            live: Arc::default(),
            established: Arc::default(),
            maps,
            _echo: echoes,
        };
        site.live = site.connect(site.vip("live", 80), LIVE);
        site.established = site.connect(site.vip("web", 82), ESTABLISHED);
        site.all_live("before anything").await;
        site.is_counted().await;
        site
    }

    fn connect(&self, to: SocketAddr, count: usize) -> Streams {
        let begin = Instant::now();
        let connect = || {
            let stream = loop {
                match TcpStream::connect_timeout(&to, PATIENCE) {
                    // The server's process begins to listen a moment later.
                    Err(_) if begin.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(10)),
                    connected => break connected.expect("a connection"),
                }
            };
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            stream
        };
        Arc::new(Mutex::new(run_in(self.client.as_ref(), || (0..count).map(|_| connect()).collect())))
    }

    /// Waits until the agent has counted whose the entries are.
    async fn is_counted(&self) {
        let memory = self.maps.tables(Access::Read).unwrap();
        let begin = Instant::now();
        while memory.load(Table::Control, Control::Counted as u32, 0) == 0 {
            assert!(begin.elapsed() < PATIENCE, "the agent does not count");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn vip(&self, service: &str, port: u16) -> SocketAddr {
        SocketAddr::new(self.cluster.cluster_ip("default", service).unwrap(), port)
    }

    pub(crate) fn url(&self, service: &str) -> String {
        url(self.vip(service, 80).ip(), 80, "/hostname")
    }

    pub(crate) fn node_port(&self) -> SocketAddr {
        SocketAddr::new(self.cluster.node(0).address(), NODE_PORT)
    }

    /// Source and destination of frames that the attacking pod sends.
    pub(crate) fn macs_of_pod(&self) -> (Mac, Mac) {
        macs(&self.attacker)
    }

    /// The same of the host outside.
    pub(crate) async fn macs_of_outside(&self) -> (Mac, Mac) {
        let argv = ["ip", "-o", "link", "show", "eth0"];
        let outside = self.cluster.lab().client(0).exec(&argv, &[], PATIENCE).await.unwrap();
        let node = self.cluster.node(0).exec(&argv, &[], PATIENCE).await.unwrap();
        (mac_of_link(&outside.stdout), mac_of_link(&node.stdout))
    }

    pub(crate) fn outside(&self) -> Frames {
        Frames::open(self.cluster.lab().client(0), "eth0").unwrap()
    }

    pub(crate) fn attacker(&self) -> Frames {
        Frames::open(&self.attacker, "eth0").unwrap()
    }

    pub(crate) fn attacker_address(&self) -> IpAddr {
        self.attacker.addresses()[0]
    }

    /// Asks over half of the live connections, one after the other, until it is stopped. The others are silent.
    pub(crate) fn keep_asking(&self) -> Asking {
        let (streams, stop) = (Arc::clone(&self.live), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
            let mut asked = 0;
            loop {
                for stream in streams.iter_mut().step_by(2) {
                    ask(stream, asked);
                    asked += 1;
                    if stopped.load(Ordering::Relaxed) && asked > LIVE as u64 {
                        return asked;
                    }
                }
            }
        });
        Asking { stop, thread }
    }

    /// Asserts that every live connection goes on where it was.
    pub(crate) async fn all_live(&self, when: &str) {
        let streams = Arc::clone(&self.live);
        let asked = tokio::task::spawn_blocking(move || ask_all(&streams)).await;
        asked.unwrap_or_else(|error| panic!("{when}: {error}"));
    }

    /// The same of the connections to the Service that is attacked.
    pub(crate) async fn established_live(&self, when: &str) {
        let streams = Arc::clone(&self.established);
        let asked = tokio::task::spawn_blocking(move || ask_all(&streams)).await;
        asked.unwrap_or_else(|error| panic!("{when}: {error}"));
    }

    pub(crate) fn tables(&self) -> Counts {
        let tables = self.cluster.tables(self.cluster.node(0)).unwrap();
        let sum = |stat| tables.ports().map(|(_, counters)| counters.get(stat)).sum();
        Counts {
            connections: sum(ServiceStat::Connections),
            recycled: sum(ServiceStat::Recycled),
            drops: tables.drops().clone(),
        }
    }

    /// Entries in the table, as the agent and the programs count them.
    pub(crate) fn entries(&self) -> u64 {
        Counters::new(&self.maps).unwrap().entries(0).unwrap()
    }

    /// Flows of a Service in the table.
    pub(crate) fn flows_of(&self, service: &str) -> usize {
        let vip = self.vip(service, 0).ip();
        let flows = Connections::new(&self.maps).list().unwrap();
        flows.iter().filter(|flow| flow.frontend.ip() == vip).count()
    }

    /// Packets with wrong checksums that pods received.
    pub(crate) async fn checksum_errors(&self) -> u64 {
        let mut sum = 0;
        for pod in self.servers.iter().chain([&self.client]) {
            sum += checksum_errors(pod).await.unwrap();
        }
        sum
    }

    /// Sends what might end a connection into each live one, with wrong sequence numbers: as the client into every other
    /// one, as the endpoint into the others, and ICMP errors into all.
    pub(crate) async fn forge_into_live(&self) -> usize {
        let vip = self.vip("live", 80);
        let flows = self.flows_to_live();
        assert_eq!(flows.len(), LIVE);
        let as_client = (Frames::open(&self.client, "eth0").unwrap(), macs(&self.client));
        let servers = self
            .servers
            .iter()
            .map(|server| (server.addresses()[0], (Frames::open(server, "eth0").unwrap(), macs(server))));
        let servers: BTreeMap<_, _> = servers.collect();
        let (attacker, attacker_macs) = (self.attacker(), self.macs_of_pod());
        let mut random = Random::new(5);
        let mut sent = 0;
        for (number, (client, endpoint)) in flows.into_iter().enumerate() {
            let (from, to, (sender, (eth_src, eth_dst)), forged): (_, _, _, &[u8]) = if number % 2 == 0 {
                (client, vip, &as_client, &[tcp::RST, tcp::SYN, tcp::FIN | tcp::ACK, tcp::RST, tcp::SYN])
            } else {
                (
                    endpoint,
                    client,
                    &servers[&endpoint.ip()],
                    &[tcp::RST, tcp::FIN | tcp::ACK, tcp::RST | tcp::ACK],
                )
            };
            for flags in forged {
                let packet = Packet::new(proto::TCP, from, to, *flags).with_payload(b"");
                let packet =
                    Packet { eth_src: *eth_src, eth_dst: *eth_dst, sequence: random.word(), ..packet };
                sender.send(&packet.bytes()).expect("a frame");
                sent += 1;
            }
            for needs_fragmentation in [true, false] {
                let source = self.attacker_address();
                let sequence = random.word();
                let error = icmp_error(attacker_macs, source, vip, client, needs_fragmentation, sequence);
                attacker.send(&error).expect("a frame");
                sent += 1;
            }
            if number % 100 == 99 {
                // Not more at once than a device has room for.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        sent
    }

    /// Clients and endpoints of the flows to the Service whose connections live, as the table has them.
    fn flows_to_live(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let vip = self.vip("live", 80);
        let flows = Connections::new(&self.maps).list().unwrap();
        flows
            .into_iter()
            .filter(|flow| flow.frontend == vip)
            .map(|flow| (flow.client, flow.endpoint))
            .collect()
    }

    pub(crate) fn agent_is_well(&self) {
        let agent = &self.cluster.agents()[0];
        assert_eq!(agent.exit_status(), None, "{}", agent.log());
        assert!(!agent.log().contains("panicked"), "{}", agent.log());
    }
}

/// A thread that asks, see [`Site::keep_asking`].
pub(crate) struct Asking {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Asking {
    /// Ends it; how many questions were answered.
    pub(crate) async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await.expect("no panic");
        joined.expect("every question is answered")
    }
}

fn ask_all(streams: &Streams) {
    let mut streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
    for (number, stream) in streams.iter_mut().enumerate() {
        ask(stream, number as u64);
    }
}

fn ask(stream: &mut TcpStream, number: u64) {
    let (question, mut answer) = (number.to_ne_bytes(), [0; 8]);
    let done = stream.write_all(&question).and_then(|()| stream.read_exact(&mut answer));
    done.unwrap_or_else(|error| panic!("connection {:?}: {error}", stream.local_addr()));
    assert_eq!(question, answer);
}

/// Source and destination of frames that a pod sends.
fn macs(pod: &KubePod) -> (Mac, Mac) {
    let pod = pod.pod().expect("it runs");
    let device = pod.host_device();
    (device.pod_mac, device.mac)
}

fn mac_of_link(output: &[u8]) -> Mac {
    let text = String::from_utf8_lossy(output);
    let mac =
        text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("an Ethernet device");
    let octets: Vec<u8> =
        mac.split(':').map(|octet| u8::from_str_radix(octet, 16).expect("hexadecimal")).collect();
    octets.try_into().expect("six octets")
}

/// What was counted.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    pub(crate) connections: u64,
    pub(crate) recycled: u64,
    drops: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// What was counted since an earlier look.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let drops = self.drops.iter().map(|(name, count)| (*name, count - before.drops[name]));
        Self {
            connections: self.connections - before.connections,
            recycled: self.recycled - before.recycled,
            drops: drops.filter(|(_, count)| *count != 0).collect(),
        }
    }

    /// Packets dropped or refused for a reason.
    pub(crate) fn dropped(&self, reason: &str) -> u64 {
        self.drops.get(reason).copied().unwrap_or_default()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} flows begun, {} recycled, dropped or refused {:?}",
            self.connections, self.recycled, self.drops
        )
    }
}
