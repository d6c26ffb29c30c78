//! The fields of `KubeProxyConfiguration` (staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go of Kubernetes 1.36,
//! with `ClientConnectionConfiguration` and `LoggingConfiguration` of k8s.io/component-base), and what each means here.

/// A field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Names from the top, joined by dots.
    pub path: &'static str,
    /// What its value is.
    pub kind: Kind,
    /// What it means here.
    pub meaning: Meaning,
}

/// Types of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// The same, where `false` is not what a missing value means (a pointer upstream).
    OptionalBool,
    /// A whole number of 32 bits.
    Int,
    /// The same, where 0 is not what a missing value means.
    OptionalInt,
    /// A number.
    Number,
    /// A text.
    Text,
    /// A duration such as `30s`.
    Duration,
    /// A list of texts.
    Texts,
    /// Whatever is there: not looked into.
    Any,
}

/// What a field means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It is honoured.
    Honoured,
    /// It has none: what it is about.
    None(&'static str),
}

use Kind::{Any, Bool, Duration, Int, Number, OptionalBool, OptionalInt, Text, Texts};
use Meaning::Honoured;

/// Rules, and the marks in packets, that this datapath does without.
const NETFILTER: Meaning = Meaning::None("netfilter");
/// IPVS and its devices.
const IPVS: Meaning = Meaning::None("IPVS");
/// Another operating system.
const WINDOWS: Meaning = Meaning::None("Windows");
/// How often and in which encoding the API server is asked: changes are watched, nothing is asked often.
const CLIENT: Meaning = Meaning::None("kube-proxy's API client");
/// kube-proxy's own binary: gates, profiles, log files.
const PROCESS: Meaning = Meaning::None("kube-proxy's process");
/// Pods are told by the devices they send through, whatever their addresses (S-64).
const DEVICES: Meaning = Meaning::None("address ranges of pods");

const fn field(path: &'static str, kind: Kind, meaning: Meaning) -> Field {
    Field { path, kind, meaning }
}

/// All of them.
pub const FIELDS: &[Field] = &[
    field("apiVersion", Text, Honoured),
    field("kind", Text, Honoured),
    field("featureGates", Any, PROCESS),
    field("clientConnection.kubeconfig", Text, Honoured),
    field("clientConnection.acceptContentTypes", Text, CLIENT),
    field("clientConnection.contentType", Text, CLIENT),
    field("clientConnection.qps", Number, CLIENT),
    field("clientConnection.burst", Int, CLIENT),
    field("logging.format", Text, Honoured),
    field("logging.verbosity", Int, Honoured),
    field("logging.flushFrequency", Any, PROCESS),
    field("logging.vmodule", Any, PROCESS),
    field("logging.options", Any, PROCESS),
    field("hostnameOverride", Text, Honoured),
    field("bindAddress", Text, Honoured),
    field("healthzBindAddress", Text, Honoured),
    field("metricsBindAddress", Text, Honoured),
    field("bindAddressHardFail", Bool, Honoured),
    field("enableProfiling", Bool, PROCESS),
    field("showHiddenMetricsForVersion", Text, PROCESS),
    field("mode", Text, Honoured),
    field("iptables.masqueradeBit", OptionalInt, NETFILTER),
    field("iptables.masqueradeAll", Bool, NETFILTER),
    field("iptables.localhostNodePorts", OptionalBool, NETFILTER),
    field("iptables.snatNodeInternalIP", OptionalBool, NETFILTER),
    field("iptables.syncPeriod", Duration, Honoured),
    field("iptables.minSyncPeriod", Duration, NETFILTER),
    field("ipvs.syncPeriod", Duration, Honoured),
    field("ipvs.minSyncPeriod", Duration, IPVS),
    field("ipvs.scheduler", Text, IPVS),
    field("ipvs.excludeCIDRs", Texts, IPVS),
    field("ipvs.strictARP", Bool, IPVS),
    field("ipvs.tcpTimeout", Duration, IPVS),
    field("ipvs.tcpFinTimeout", Duration, IPVS),
    field("ipvs.udpTimeout", Duration, IPVS),
    field("nftables.masqueradeBit", OptionalInt, NETFILTER),
    field("nftables.masqueradeAll", Bool, NETFILTER),
    field("nftables.syncPeriod", Duration, Honoured),
    field("nftables.minSyncPeriod", Duration, NETFILTER),
    field("winkernel.networkName", Text, WINDOWS),
    field("winkernel.sourceVip", Text, WINDOWS),
    field("winkernel.enableDSR", Bool, WINDOWS),
    field("winkernel.rootHnsEndpointName", Text, WINDOWS),
    field("winkernel.forwardHealthCheckVip", Bool, WINDOWS),
    field("detectLocalMode", Text, Honoured),
    field("detectLocal.bridgeInterface", Text, Honoured),
    field("detectLocal.interfaceNamePrefix", Text, Honoured),
    field("clusterCIDR", Text, DEVICES),
    field("nodePortAddresses", Texts, Honoured),
    field("oomScoreAdj", OptionalInt, Honoured),
    field("conntrack.maxPerCore", OptionalInt, Honoured),
    field("conntrack.min", OptionalInt, Honoured),
    field("conntrack.tcpEstablishedTimeout", Duration, Honoured),
    field("conntrack.tcpCloseWaitTimeout", Duration, Honoured),
    field("conntrack.tcpBeLiberal", Bool, NETFILTER),
    field("conntrack.udpTimeout", Duration, Honoured),
    field("conntrack.udpStreamTimeout", Duration, Honoured),
    field("configSyncPeriod", Duration, CLIENT),
    field("portRange", Text, Meaning::None("the userspace mode of long ago")),
    field("udpIdleTimeout", Duration, Meaning::None("the userspace mode of long ago")),
    field("windowsRunAsService", Bool, WINDOWS),
];

/// The field of a path.
pub(super) fn find(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.path == path)
}

/// True when fields lie below this path.
pub(super) fn is_section(path: &str) -> bool {
    let below = |field: &Field| field.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
    FIELDS.iter().any(below)
}

/// Names that there are directly below a path (empty for the top).
pub(super) fn names_below(section: &str) -> Vec<&'static str> {
    let below = |field: &'static Field| {
        let rest = match section {
            "" => field.path,
            _ => field.path.strip_prefix(section)?.strip_prefix('.')?,
        };
        rest.split('.').next()
    };
    let mut names: Vec<&str> = FIELDS.iter().filter_map(below).collect();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_path_is_a_field_once_and_no_section_besides() {
        let paths: BTreeSet<&str> = FIELDS.iter().map(|field| field.path).collect();
        assert_eq!(paths.len(), FIELDS.len());
        assert!(paths.iter().all(|path| !is_section(path)));
        assert!(is_section("conntrack") && !is_section("conn"));
        assert!(names_below("").contains(&"iptables") && names_below("conntrack").contains(&"min"));
    }
}
