//! Every metric there is. docs/metrics.md has the same list; a test holds them against each other.

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, or starts again.
    Counter,
    /// It comes and goes.
    Gauge,
    /// Counts by upper bound.
    Histogram,
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// One sentence for people.
    pub help: &'static str,
}

/// Upper bounds for what takes milliseconds: kube-proxy's (1 ms, doubling, 15 of them), and some below.
pub(super) const SYNC_BOUNDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024,
    2.048, 4.096, 8.192, 16.384,
];

/// Upper bounds of the network programming latency: kube-proxy's from 0.25 s on, and finer ones below.
pub(super) const PROGRAMMING_BOUNDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0,
    10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 18.0, 19.0, 20.0, 21.0, 22.0, 23.0, 24.0, 25.0, 26.0,
    27.0, 28.0, 29.0, 30.0, 31.0, 32.0, 33.0, 34.0, 35.0, 36.0, 37.0, 38.0, 39.0, 40.0, 41.0, 42.0, 43.0,
    44.0, 45.0, 46.0, 47.0, 48.0, 49.0, 50.0, 51.0, 52.0, 53.0, 54.0, 55.0, 56.0, 57.0, 58.0, 59.0, 60.0,
    65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0, 100.0, 105.0, 110.0, 115.0, 120.0, 150.0, 180.0, 210.0, 240.0,
    270.0, 300.0,
];

macro_rules! families {
    ($($constant:ident = $name:literal, $kind:ident, [$($label:literal),*], $help:literal;)*) => {
        $(
            pub(super) const $constant: Family =
                Family { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };
        )*

        /// All of them.
        pub const FAMILIES: &[Family] = &[$($constant),*];
    };
}

families! {
    SYNC = "kubeproxy_sync_proxy_rules_duration_seconds", Histogram, ["ip_family"],
        "Time from the start of planning until the kernel has what was planned";
    SYNC_FULL = "kubeproxy_sync_full_proxy_rules_duration_seconds", Histogram, ["ip_family"],
        "The same, of rounds over all Services";
    SYNC_PARTIAL = "kubeproxy_sync_partial_proxy_rules_duration_seconds", Histogram, ["ip_family"],
        "The same, of rounds over those that changed";
    PROGRAMMING = "kubeproxy_network_programming_duration_seconds", Histogram, ["ip_family"],
        "Time from a change in the cluster (last-change-trigger-time of the EndpointSlice) until the kernel has it";
    LAST_SYNC = "kubeproxy_sync_proxy_rules_last_timestamp_seconds", Gauge, ["ip_family"],
        "When the kernel had all that was planned, in seconds since 1970";
    LAST_QUEUED = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", Gauge, ["ip_family"],
        "When the last change came in, in seconds since 1970";
    ENDPOINTS_PENDING = "kubeproxy_sync_proxy_rules_endpoint_changes_pending", Gauge, [],
        "Changes of EndpointSlices that the kernel does not have yet";
    ENDPOINTS_TOTAL = "kubeproxy_sync_proxy_rules_endpoint_changes_total", Counter, [],
        "Changes of EndpointSlices that came in";
    SERVICES_PENDING = "kubeproxy_sync_proxy_rules_service_changes_pending", Gauge, [],
        "Changes of Services that the kernel does not have yet";
    SERVICES_TOTAL = "kubeproxy_sync_proxy_rules_service_changes_total", Counter, [],
        "Changes of Services that came in";
    NO_LOCAL = "kubeproxy_sync_proxy_rules_no_local_endpoints_total", Gauge, ["ip_family", "traffic_policy"],
        "Service ports with a Local traffic policy whose endpoints are all on other nodes";
    HEALTHZ = "kubeproxy_proxy_healthz_total", Counter, ["code"], "Answers of /healthz of the health server";
    LIVEZ = "kubeproxy_proxy_livez_total", Counter, ["code"], "Answers of /livez of the health server";
    BUILD = "lb_build_info", Gauge, ["version"], "1, with the version of the agent";
    SERVICES = "lb_services", Gauge, ["ip_family"], "Service ports in the kernel's tables";
    ENDPOINTS = "lb_endpoints", Gauge, ["ip_family"], "Endpoints of Service ports in the kernel's tables";
    LATE = "lb_services_late", Gauge, [], "Services whose last change could not be applied; tried again";
    FAILURES = "lb_apply_failures_total", Counter, [], "Rounds that the kernel took not all of";
    PLANNING = "lb_planning_duration_seconds", Histogram, [], "Time that a round planned before it applied";
    EVENT_TO_KERNEL = "lb_event_to_kernel_seconds", Histogram, [],
        "Time from the receipt of a change until the kernel has it";
    TABLE_ENTRIES = "lb_table_entries", Gauge, ["table"], "Entries in use";
    TABLE_SIZE = "lb_table_max_entries", Gauge, ["table"], "Entries there is room for";
    DROPS = "lb_dropped_packets_total", Counter, ["reason"], "Packets dropped or refused";
    CONNECTIONS = "lb_connections", Gauge, ["state"], "Flows at the last sweep, every five seconds";
    SWEEPS = "lb_connection_sweep_duration_seconds", Histogram, [], "Time that a sweep of the connection tables took";
    EXPIRED = "lb_connections_expired_total", Counter, [], "Flows removed because they were over or silent for too long";
    ORPHANS = "lb_connection_orphans_total", Counter, [], "Entries of answers removed because the flow had been evicted";
    HANDSHAKES = "lb_handshake_duration_seconds", Histogram, [],
        "Time from a client's first SYN to its endpoint's answer, measured in the kernel";
    DEVICES = "lb_devices", Gauge, ["role"], "Devices that have the programs";
    XDP_DEVICES = "lb_xdp_devices", Gauge, ["mode"],
        "Devices that run the XDP program: in the driver (native), in the receive path (generic)";
    XDP_PACKETS = "lb_xdp_packets_total", Counter, ["to"],
        "Packets that the XDP program sent on: back by the driver that they came from, handed to a network device (forwarded) or to a pod's (pod)";
    REPAIRS = "lb_program_repairs_total", Counter, ["at"], "Programs, their pins and tables that somebody removed, put back";
    LISTS = "lb_source_lists_total", Counter, [], "Complete lists received from the API server";
    SOURCE_FAILURES = "lb_source_failures_total", Counter, [],
        "Failed requests and broken watches, or manifests that could not be read";
    SKIPPED = "lb_source_skipped_total", Counter, ["what"], "Objects and fields skipped because they make no sense";
    OMITTED = "lb_metrics_omitted", Gauge, ["what"],
        "Service ports and endpoints without series of their own (--metrics-max-series)";
    SERVICE_CONNECTIONS = "lb_service_connections_total", Counter,
        ["namespace", "service", "port", "protocol", "ip_family"], "Connections opened";
    SERVICE_ACTIVE = "lb_service_active_connections", Gauge,
        ["namespace", "service", "port", "protocol", "ip_family"], "Flows at the last sweep";
    SERVICE_PACKETS = "lb_service_packets_total", Counter,
        ["namespace", "service", "port", "protocol", "ip_family", "direction"],
        "Packets from clients (request) and to them (reply)";
    SERVICE_BYTES = "lb_service_bytes_total", Counter,
        ["namespace", "service", "port", "protocol", "ip_family", "direction"],
        "Bytes of these, from the IP header on";
    SERVICE_REFUSED = "lb_service_refused_packets_total", Counter,
        ["namespace", "service", "port", "protocol", "ip_family"], "Packets refused with a port unreachable";
    SERVICE_DROPPED = "lb_service_dropped_packets_total", Counter,
        ["namespace", "service", "port", "protocol", "ip_family"], "Packets dropped";
    SERVICE_RESELECTED = "lb_service_reselected_flows_total", Counter,
        ["namespace", "service", "port", "protocol", "ip_family"], "Flows that chose another endpoint";
    SERVICE_RECYCLED = "lb_service_recycled_flows_total", Counter,
        ["namespace", "service", "port", "protocol", "ip_family"],
        "Flows that made room because the Service had more than its share of the connection table";
    SERVICE_HANDSHAKES = "lb_service_handshakes_total", Counter,
        ["namespace", "service", "port", "protocol", "ip_family"], "Connections over TCP that an endpoint answered";
    SERVICE_HANDSHAKE_SECONDS = "lb_service_handshake_seconds_total", Counter,
        ["namespace", "service", "port", "protocol", "ip_family"],
        "Seconds from the first SYN to its answer, of all of these together";
    SERVICE_ENDPOINTS = "lb_service_endpoints", Gauge,
        ["namespace", "service", "port", "protocol", "ip_family"],
        "Endpoints that a new connection at the cluster IP chooses from";
    ENDPOINT_CONNECTIONS = "lb_endpoint_connections_total", Counter,
        ["namespace", "service", "port", "protocol", "ip_family", "endpoint"], "Connections opened";
    ENDPOINT_PACKETS = "lb_endpoint_packets_total", Counter,
        ["namespace", "service", "port", "protocol", "ip_family", "endpoint", "direction"],
        "Packets to the endpoint (request) and from it (reply)";
    ENDPOINT_BYTES = "lb_endpoint_bytes_total", Counter,
        ["namespace", "service", "port", "protocol", "ip_family", "endpoint", "direction"],
        "Bytes of these, from the IP header on";
    CPU = "process_cpu_seconds_total", Counter, [], "CPU time of the agent in seconds";
    RESIDENT = "process_resident_memory_bytes", Gauge, [], "Memory of the agent";
    VIRTUAL = "process_virtual_memory_bytes", Gauge, [], "Address space of the agent";
    DESCRIPTORS = "process_open_fds", Gauge, [], "Open file descriptors of the agent";
    START = "process_start_time_seconds", Gauge, [], "When the agent started, in seconds since 1970";
}
