//! Flags of `lb-agent run`, and those that several commands share.

mod serve;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use lb_common::conntrack::Timeouts;
use lb_common::layout::{Algorithm, Forwarding};

use crate::dataplane::{self, AttachMode, Sizes, XdpMode};
use crate::live;
use crate::net::{
    AddressOptions, DEFAULT_NET_DEVICES, DEFAULT_POD_BRIDGES, DEFAULT_POD_DEVICES, NodePortRange, Patterns,
};

pub use serve::{BindAddress, HEALTHZ_PORT, METRICS_PORT, MetricsDetail, ServeOptions};

/// Flags about what is logged, and how.
#[derive(Clone, Debug, Args)]
pub(crate) struct LogOptions {
    /// What to log: error, warn, info, debug or trace, also by module (`info,lb_agent::net=debug`)
    #[arg(long = "log", env = "LB_AGENT_LOG", default_value = "info", value_name = "FILTER", global = true)]
    pub(crate) filter: String,

    /// How log lines look
    #[arg(long, env = "LB_AGENT_LOG_FORMAT", value_enum, default_value_t, global = true)]
    pub(crate) log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// Where an agent's maps and links are pinned.
#[derive(Clone, Debug, Args)]
pub(crate) struct PinOptions {
    /// Directory on a bpf file system where maps and links are pinned. They outlive the agent: the next one started
    /// with the same directory goes on with them
    #[arg(long, env = "LB_AGENT_BPF_ROOT", default_value = dataplane::DEFAULT_ROOT, value_name = "DIR")]
    pub(crate) bpf_root: PathBuf,
}

/// Which eBPF object is loaded.
#[derive(Clone, Debug, Args)]
pub(crate) struct ObjectOptions {
    /// Load this eBPF object instead of the one built into lb-agent
    #[arg(long, env = "LB_AGENT_OBJECT", value_name = "FILE")]
    pub(crate) object: Option<PathBuf>,
}

/// Forwarding modes, as flag values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ForwardingMode {
    /// Translate, then let the host's stack route: every CNI, netfilter and network policy keep working.
    #[default]
    Stack,
    /// Translate, then hand the packet straight to a local pod or a directly reachable node, past the host's stack.
    Redirect,
}

impl From<ForwardingMode> for Forwarding {
    fn from(mode: ForwardingMode) -> Self {
        match mode {
            ForwardingMode::Stack => Self::Stack,
            ForwardingMode::Redirect => Self::Redirect,
        }
    }
}

/// How new connections choose an endpoint, as flag values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LoadBalancing {
    /// By chance.
    #[default]
    Random,
    /// By a hash of the client's address and port, in a Maglev table of each Service: every node chooses alike, and changes of
    /// endpoints change little. With session affinity by the client's address alone.
    Maglev,
}

impl From<LoadBalancing> for Algorithm {
    fn from(flag: LoadBalancing) -> Self {
        match flag {
            LoadBalancing::Random => Self::Random,
            LoadBalancing::Maglev => Self::Maglev,
        }
    }
}

/// Whose connections are translated when they are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SocketLb {
    /// Processes of the node itself, host-network pods among them: those in lb-agent's network namespace.
    #[default]
    Host,
    /// Pods, too: no packet of theirs is touched. Not with network policy, service meshes or NFS that go by the
    /// addresses of packets.
    All,
    /// Nobody: processes of the node are not served.
    Off,
}

/// An address range in the notation `10.96.0.0/12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Any address in it.
    pub address: IpAddr,
    /// Prefix length.
    pub prefix: u8,
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("`{text}` is no address range such as 10.96.0.0/12 or fd00:96::/108");
        let (address, prefix) = text.split_once('/').ok_or_else(expected)?;
        let address: IpAddr = address.trim().parse().map_err(|_| expected())?;
        let prefix: u8 = prefix.trim().parse().map_err(|_| expected())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix > longest { Err(expected()) } else { Ok(Self { address, prefix }) }
    }
}

/// Flags of `lb-agent run`.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    #[command(flatten)]
    pub(crate) source: SourceOptions,
    #[command(flatten)]
    pub(crate) datapath: DatapathOptions,
    #[command(flatten)]
    pub(crate) devices: DeviceOptions,
    #[command(flatten)]
    pub(crate) node: NodeOptions,
    #[command(flatten)]
    pub(crate) sizes: SizeOptions,
    #[command(flatten)]
    pub(crate) timeouts: TimeoutOptions,
    #[command(flatten)]
    pub(crate) serve: ServeOptions,
    #[command(flatten)]
    pub(crate) files: FileOptions,
}

impl RunOptions {
    /// How large tables are to be made.
    pub(crate) fn table_sizes(&self) -> Sizes {
        let sizes = Sizes::from(&self.sizes);
        let many = self.datapath.load_balancing == LoadBalancing::Maglev && sizes.slots.is_none();
        if many { Sizes { slots: Some(sizes.slots_for_maglev()), ..sizes } } else { sizes }
    }
}

/// Where Services and endpoints come from.
#[derive(Clone, Debug, Args)]
#[command(
    next_help_heading = "Source (default: the API server of the pod's service account, or the kubeconfig)"
)]
pub struct SourceOptions {
    /// Take Services and EndpointSlices from the YAML and JSON files in this directory, followed for changes, instead
    /// of an API server
    #[arg(
        long,
        env = "LB_AGENT_MANIFESTS",
        value_name = "DIR",
        conflicts_with_all = ["kubeconfig", "context", "server"]
    )]
    pub manifests: Option<PathBuf>,

    /// Kubeconfig file that names the API server
    #[arg(long, env = "LB_AGENT_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Context in the kubeconfig, other than its current one
    #[arg(long, env = "LB_AGENT_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,

    /// URL of the API server, in place of the configured one. Needed in a pod when lb-agent is what makes the
    /// `kubernetes` Service work
    #[arg(long, env = "LB_AGENT_SERVER", value_name = "URL")]
    pub server: Option<String>,

    /// Name of this node as Kubernetes knows it; tells which endpoints are local [default: the host name]
    #[arg(long, visible_alias = "hostname-override", env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// With --manifests: the node's zone, which otherwise is read from its Node object
    #[arg(long, env = "LB_AGENT_ZONE", value_name = "ZONE", requires = "manifests")]
    pub zone: Option<String>,

    /// Serve only Services labelled service.kubernetes.io/service-proxy-name=NAME; without it, only those without
    /// that label
    #[arg(long, env = "LB_AGENT_SERVICE_PROXY_NAME", value_name = "NAME")]
    pub service_proxy_name: Option<String>,

    /// Range that cluster IPs are taken from; traffic to addresses in it that belong to no Service is dropped
    /// (may be repeated, or separated by commas) [default: the ServiceCIDR objects of the API server, followed for
    /// changes]
    #[arg(long, env = "LB_AGENT_SERVICE_CIDR", value_name = "CIDR", value_delimiter = ',')]
    pub service_cidr: Vec<Range>,
}

/// How packets are handled.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Datapath")]
pub struct DatapathOptions {
    /// How translated packets leave.
    ///
    /// `redirect` is faster, but packets bypass the host's routing and netfilter: use it only where network policy is
    /// NOT enforced by iptables, nftables or IPVS rules on the host. A backend whose device or MAC address is not
    /// known for sure, or that lies behind a tunnel, takes the way of `stack` all the same.
    #[arg(long, env = "LB_AGENT_FORWARDING", value_enum, default_value_t, verbatim_doc_comment)]
    pub forwarding: ForwardingMode,

    /// How new connections choose an endpoint, where a Service's annotation `lb-agent/load-balancing` (`random` or `maglev`)
    /// does not say
    #[arg(long, env = "LB_AGENT_LOAD_BALANCING", value_enum, default_value_t)]
    pub load_balancing: LoadBalancing,

    /// How programs are attached to devices
    #[arg(long, env = "LB_AGENT_ATTACH", value_enum, default_value_t)]
    pub attach: AttachMode,

    /// Carry established flows of clients outside in the drivers of network devices (XDP).
    ///
    /// Packets that are carried there bypass the host's routing and netfilter, whatever --forwarding says: use it only where
    /// network policy is NOT enforced by iptables, nftables or IPVS rules on the host. Everything else about a flow, its
    /// first packets among it, is done as without. Never at pods' devices. Can be changed while lb-agent runs.
    #[arg(long, env = "LB_AGENT_XDP", value_enum, default_value_t, verbatim_doc_comment)]
    pub xdp: XdpMode,

    /// Whose connections are translated when they are made, by programs at a cgroup; a change takes effect when lb-agent
    /// starts
    #[arg(long, env = "LB_AGENT_SOCKET_LB", value_enum, default_value_t)]
    pub socket_lb: SocketLb,

    /// cgroup v2 directory whose processes these are, or one with cgroup v2 at `unified` in it [default: where cgroup v2
    /// is mounted]. In a container, mount the host's /sys/fs/cgroup and name it here: its own shows its own processes only
    #[arg(long, env = "LB_AGENT_CGROUP", value_name = "DIR")]
    pub cgroup: Option<PathBuf>,

    /// Answer pings (ICMP echo requests) of cluster IPs that have an endpoint at any of their ports; without it they are
    /// dropped, as those of other cluster IPs always are
    #[arg(long, env = "LB_AGENT_ECHO_REPLY")]
    pub echo_reply: bool,

    /// Let the programs log the first packet of every flow to a Service (at level debug: `--log debug`). For debugging:
    /// it costs every new connection some time
    #[arg(long, env = "LB_AGENT_DATAPATH_LOG")]
    pub datapath_log: bool,

    #[command(flatten)]
    pub(crate) pins: PinOptions,

    #[command(flatten)]
    pub(crate) object: ObjectOptions,
}

/// Which devices lead to pods, and which out of the node.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Devices")]
pub struct DeviceOptions {
    /// Names of the host side of pod devices, separated by commas: * and ? as in a shell, a leading ! excludes.
    /// Bridges, tunnels and network cards are never taken for pod devices
    #[arg(long, env = "LB_AGENT_POD_DEVICES", value_name = "PATTERNS", default_value = DEFAULT_POD_DEVICES)]
    pub pod_devices: Patterns,

    /// Names of bridges whose ports are pod devices, whatever the ports are called
    #[arg(long, env = "LB_AGENT_POD_BRIDGES", value_name = "PATTERNS", default_value = DEFAULT_POD_BRIDGES)]
    pub pod_bridges: Patterns,

    /// Names of the devices that hosts outside and other nodes are behind, in the same notation (`none` for none: then
    /// node ports, external IPs and load balancer IPs are served to this node's pods and processes only).
    ///
    /// Of the names that match, those devices are taken that have an Ethernet header (network cards, bonds, VLANs, vxlan,
    /// bridges) and a global address or a default route, and are neither pod devices nor pod bridges nor ports of another
    /// device. They are followed: a device that gets its address later is taken then.
    #[arg(
        long,
        env = "LB_AGENT_NET_DEVICES",
        value_name = "PATTERNS",
        default_value = DEFAULT_NET_DEVICES
    )]
    pub net_devices: Patterns,
}

/// A range of ports in the notation `1024-32767`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(pub RangeInclusive<u16>);

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = text.split_once('-').and_then(|(first, last)| {
            let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first > 0 && first <= last).then_some(first..=last)
        });
        range.map(Self).ok_or_else(|| format!("`{text}` is no range of ports such as 1024-32767"))
    }
}

/// The node's addresses, and what they are used for.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Node addresses")]
pub struct NodeOptions {
    /// The node's address, one of each family (may be repeated, or separated by commas) [default: the first global
    /// address of the device that the default route leads over]
    #[arg(long, env = "LB_AGENT_NODE_IP", value_name = "IP", value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,

    /// Where node ports are served: address ranges, or one of the words below, separated by commas.
    ///
    /// `all`: at every address of the node, and at its loopback addresses for its own processes. `primary`: at the node's
    /// address of each family (see --node-ip). `localhost`: at the loopback addresses, which only the node's own
    /// processes reach. A family that no range is given for is served at all its addresses. The addresses are followed.
    #[arg(
        long,
        visible_alias = "nodeport-addresses",
        env = "LB_AGENT_NODE_PORT_ADDRESSES",
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "all"
    )]
    pub node_port_addresses: Vec<NodePortRange>,

    /// Source ports of flows that get an address of the node as their source [default: from 1024 up to the ports that the
    /// node's sockets choose by themselves].
    ///
    /// Not those of net.ipv4.ip_local_port_range: a process of the node that connects to an endpoint itself must not come
    /// by the same source port, or the endpoint could not tell the two flows apart. Ports that processes listen at, and
    /// node ports, may be in the range: a flow has an endpoint and its port as well, so that one source port serves as
    /// many flows as there are endpoints. Where the local ports begin too low, the default is what lies above them.
    #[arg(long, env = "LB_AGENT_MASQUERADE_PORTS", value_name = "FIRST-LAST")]
    pub masquerade_ports: Option<PortRange>,
}

impl NodeOptions {
    /// What the flags say, checked.
    ///
    /// # Errors
    /// Two addresses of one family, or one that no node can have.
    pub fn addresses(&self) -> Result<AddressOptions, String> {
        for v6 in [false, true] {
            if self.node_ip.iter().filter(|address| address.is_ipv6() == v6).count() > 1 {
                let family = if v6 { "IPv6" } else { "IPv4" };
                return Err(format!("--node-ip names more than one {family} address"));
            }
        }
        let impossible =
            |address: &&IpAddr| address.is_unspecified() || address.is_loopback() || address.is_multicast();
        if let Some(address) = self.node_ip.iter().find(impossible) {
            return Err(format!("--node-ip {address} is no address that others reach a node by"));
        }
        Ok(AddressOptions { node_ips: self.node_ip.clone(), node_ports: self.node_port_addresses.clone() })
    }
}

/// How large tables are.
#[derive(Clone, Debug, Args)]
#[command(
    next_help_heading = "Sizes (of tables that are made; adopted tables keep theirs until `lb-agent cleanup`)"
)]
pub struct SizeOptions {
    /// Service ports, counted once for each address family
    #[arg(long, env = "LB_AGENT_MAX_SERVICES", default_value_t = Sizes::default().services, value_name = "N")]
    pub max_services: u32,

    /// Endpoints of Service ports, for each address family
    #[arg(long, env = "LB_AGENT_MAX_ENDPOINTS", default_value_t = Sizes::default().endpoints, value_name = "N")]
    pub max_endpoints: u32,

    /// Slots, which the lists of endpoints that connections choose from take: one an endpoint; a Maglev table takes 1,021, with
    /// more than 63 endpoints 16,381, with more than 1,023 131,071. A list that changes needs its slots twice for a moment.
    /// [default: four for each of --max-endpoints; with --load-balancing=maglev 1,400 for each of --max-services more]
    #[arg(long, env = "LB_AGENT_MAX_SLOTS", value_name = "N", verbatim_doc_comment)]
    pub max_slots: Option<u32>,

    /// Entries of the connection table, two a connection, for each address family; when it is full, what was unused
    /// longest makes room
    #[arg(
        long,
        env = "LB_AGENT_MAX_CONNECTIONS",
        default_value_t = Sizes::default().connections,
        value_name = "N"
    )]
    pub max_connections: u32,

    /// Sets of two flows in the flow cache, for each CPU and address family; a power of two
    #[arg(
        long,
        env = "LB_AGENT_FLOW_CACHE_SETS",
        default_value_t = Sizes::default().flow_cache_sets,
        value_name = "N"
    )]
    pub flow_cache_sets: u32,
}

impl From<&SizeOptions> for Sizes {
    fn from(options: &SizeOptions) -> Self {
        Self {
            services: options.max_services,
            endpoints: options.max_endpoints,
            connections: options.max_connections,
            flow_cache_sets: options.flow_cache_sets,
            slots: options.max_slots,
        }
    }
}

/// When silent flows end.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Timeouts (seconds of silence after which a flow is forgotten)")]
pub struct TimeoutOptions {
    /// Established TCP connection
    #[arg(long, env = "LB_AGENT_TCP_ESTABLISHED_TIMEOUT", value_name = "SECONDS",
          default_value_t = Timeouts::DEFAULT.established, value_parser = clap::value_parser!(u32).range(1..))]
    pub tcp_established_timeout: u32,

    /// TCP connection that one side has closed
    #[arg(long, env = "LB_AGENT_TCP_CLOSE_WAIT_TIMEOUT", value_name = "SECONDS",
          default_value_t = Timeouts::DEFAULT.close_wait, value_parser = clap::value_parser!(u32).range(1..))]
    pub tcp_close_wait_timeout: u32,

    /// UDP flow without an answer; at least 10, because the flow cache reports every few seconds
    #[arg(long, env = "LB_AGENT_UDP_TIMEOUT", value_name = "SECONDS",
          default_value_t = Timeouts::DEFAULT.udp, value_parser = clap::value_parser!(u32).range(10..))]
    pub udp_timeout: u32,

    /// UDP flow with answers; at least 10
    #[arg(long, env = "LB_AGENT_UDP_STREAM_TIMEOUT", value_name = "SECONDS",
          default_value_t = Timeouts::DEFAULT.udp_stream, value_parser = clap::value_parser!(u32).range(10..))]
    pub udp_stream_timeout: u32,
}

impl From<&TimeoutOptions> for Timeouts {
    fn from(options: &TimeoutOptions) -> Self {
        Self {
            established: options.tcp_established_timeout,
            close_wait: options.tcp_close_wait_timeout,
            udp: options.udp_timeout,
            udp_stream: options.udp_stream_timeout,
        }
    }
}

/// Files the agent writes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Files")]
pub struct FileOptions {
    /// Write this file once every Service known at the start is in the kernel and every pod device is attached;
    /// it is removed at the start and at the end
    #[arg(long, env = "LB_AGENT_READY_FILE", value_name = "FILE")]
    pub ready_file: Option<PathBuf>,

    /// Append a line of JSON for every Service programmed: service, trigger_time, received, applied, latency_us
    #[arg(long, env = "LB_AGENT_LATENCY_LOG", value_name = "FILE")]
    pub latency_log: Option<PathBuf>,

    /// Directory of the socket at which the running agent takes `lb-agent set` and `lb-agent get`; made where it is
    /// missing
    #[arg(long, env = "LB_AGENT_RUN_DIR", default_value = live::DEFAULT_RUN_DIR, value_name = "DIR")]
    pub run_dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked_with_their_family() {
        let range: Range = "10.96.0.0/12".parse().unwrap();
        assert_eq!((range.address, range.prefix), ("10.96.0.0".parse().unwrap(), 12));
        assert!("fd00:96::/108".parse::<Range>().is_ok());
        for wrong in ["10.96.0.0", "10.96.0.0/33", "x/8", "fd00::/129", ""] {
            assert!(wrong.parse::<Range>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranges_of_ports_begin_at_one_and_end_after_their_beginning() {
        assert_eq!("1024-32767".parse(), Ok(PortRange(1024..=32767)));
        for wrong in ["1024", "0-7", "9-8", "1-65536", "a-b", ""] {
            assert!(wrong.parse::<PortRange>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_node_has_one_address_of_a_family_and_others_reach_it() {
        let options = |addresses: &[&str]| NodeOptions {
            node_ip: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            node_port_addresses: vec![NodePortRange::All],
            masquerade_ports: None,
        };
        assert!(options(&["192.0.2.1", "2001:db8::1"]).addresses().is_ok());
        assert!(options(&["192.0.2.1", "192.0.2.2"]).addresses().unwrap_err().contains("IPv4"));
        assert!(options(&["::1"]).addresses().is_err());
    }
}
