//! The smaller files: localhost node ports, traffic distribution, slices by hand, pods that end, timeouts, odd addresses.

#[path = "others/addresses.rs"]
mod addresses;
#[path = "others/close_wait.rs"]
mod close_wait;
#[path = "others/distribution.rs"]
mod distribution;
#[path = "others/lifecycle.rs"]
mod lifecycle;
#[path = "others/localhost.rs"]
mod localhost;
#[path = "others/slices.rs"]
mod slices;

use crate::prelude::*;

/// The titles.
pub(crate) fn groups() -> Vec<Group> {
    vec![
        Group::new("kube_proxy.go", "KubeProxy", close_wait::titles()),
        Group::new("localhost_nodeports.go", "LocalhostNodePorts", localhost::titles()),
        Group::new("traffic_distribution.go", "Traffic Distribution", distribution::titles()),
        Group::new("topology_hints.go", "Topology Hints", distribution::hints()),
        Group::new("endpointslice.go", "EndpointSlice", slices::titles()),
        Group::new("service_cidrs.go", "Service CIDRs", addresses::ranges()),
        Group::new("funny_ips.go", "CVE-2021-29923", addresses::leading_zeros()),
        Group::new("no_snat.go", "NoSNAT", addresses::no_snat()),
        Group::new("pod_lifecycle.go", "Connectivity Pod Lifecycle", lifecycle::titles()),
    ]
}
