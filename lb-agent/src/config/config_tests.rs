//! The file, field by field.

use super::*;

/// What kubeadm writes into its ConfigMap `kube-proxy`: every field, most of them empty.
const KUBEADM: &str = include_str!("../../tests/data/kube-proxy-kubeadm.yaml");

fn with(fields: &str) -> String {
    format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{fields}\n")
}

fn set(fields: &str) -> Vec<(&'static str, String)> {
    let file = parse(&with(fields)).unwrap();
    file.settings.into_iter().map(|setting| (setting.flag, setting.value)).collect()
}

fn error(fields: &str) -> String {
    parse(&with(fields)).unwrap_err()
}

#[test]
fn s_63_the_file_of_kubeadm_is_taken_as_it_is() {
    let file = parse(KUBEADM).unwrap();
    let kubeconfig = Setting {
        flag: "kubeconfig",
        value: "/var/lib/kube-proxy/kubeconfig.conf".to_owned(),
        field: "clientConnection.kubeconfig",
    };
    assert_eq!(file.settings, [kubeconfig]);
    assert_eq!(file.without_meaning, ["clusterCIDR (address ranges of pods)"]);
    assert!(file.notes.is_empty(), "{:?}", file.notes);
}

#[test]
fn s_63_every_field_with_a_meaning_becomes_a_flag() {
    for (fields, flag, value) in [
        ("hostnameOverride: ' Node-7 '", "node_name", "node-7"),
        ("bindAddress: 192.0.2.7", "node_ip", "192.0.2.7"),
        ("healthzBindAddress: 127.0.0.1:9", "healthz_bind_address", "127.0.0.1:9"),
        ("metricsBindAddress: 0.0.0.0", "metrics_bind_address", "0.0.0.0"),
        ("bindAddressHardFail: true", "bind_address_hard_fail", "true"),
        (
            "nodePortAddresses: [192.0.2.0/24, '2001:db8::/32']",
            "node_port_addresses",
            "192.0.2.0/24,2001:db8::/32",
        ),
        ("mode: nftables", "node_port_addresses", "primary"),
        ("oomScoreAdj: -999", "oom_score_adj", "-999"),
        ("oomScoreAdj: 0", "oom_score_adj", "0"),
        ("logging: {format: json}", "log_format", "json"),
        ("logging: {verbosity: 2}", "filter", "info"),
        ("logging: {verbosity: 5}", "filter", "debug"),
        ("logging: {verbosity: 9}", "filter", "trace"),
        ("conntrack: {tcpEstablishedTimeout: 2h0m0s}", "tcp_established_timeout", "7200"),
        ("conntrack: {tcpCloseWaitTimeout: 90s}", "tcp_close_wait_timeout", "90"),
        ("conntrack: {udpTimeout: 20.5s}", "udp_timeout", "21"),
        ("conntrack: {udpStreamTimeout: 5m}", "udp_stream_timeout", "300"),
        ("conntrack: {maxPerCore: 1, min: 100000}", "max_connections", "200000"),
        ("conntrack: {maxPerCore: 1, min: 0}", "max_connections", "1024"),
        ("conntrack: {maxPerCore: 2000000000}", "max_connections", "4194304"),
        ("iptables: {syncPeriod: 45s}", "health_timeout", "90"),
        ("mode: ipvs\nipvs: {syncPeriod: 10s}\niptables: {syncPeriod: 1s}", "health_timeout", "20"),
        ("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cbr0}", "pod_bridges", "cbr0"),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}",
            "pod_devices",
            "veth*",
        ),
    ] {
        assert_eq!(set(fields), [(flag, value.to_owned())], "{fields}");
    }
    assert_eq!(set("bindAddress: '::'"), [("metrics_bind_address", "[::1]".to_owned())]);
    let nothing = [
        "bindAddress: 0.0.0.0",
        "mode: iptables",
        "conntrack: {maxPerCore: 0, min: 7}",
        "conntrack: {udpTimeout: 0s}",
    ];
    for fields in nothing {
        assert_eq!(set(fields), [], "{fields}");
    }
}

#[test]
fn s_63_fields_without_a_meaning_are_named_when_they_are_set() {
    let fields = "iptables: {masqueradeBit: 14, masqueradeAll: true, localhostNodePorts: false, minSyncPeriod: 1s}\n\
                  ipvs: {strictARP: true, excludeCIDRs: [10.0.0.0/8], scheduler: ''}\n\
                  featureGates: {NFTablesProxyMode: true}\nwinkernel: {enableDSR: false}";
    let file = parse(&with(fields)).unwrap();
    assert_eq!(
        file.without_meaning,
        [
            "featureGates (kube-proxy's process)",
            "iptables.localhostNodePorts (netfilter)",
            "iptables.masqueradeAll (netfilter)",
            "iptables.masqueradeBit (netfilter)",
            "iptables.minSyncPeriod (netfilter)",
            "ipvs.excludeCIDRs (IPVS)",
            "ipvs.strictARP (IPVS)",
        ]
    );
    assert_eq!(file.notes.len(), 1, "{:?}", file.notes);
    assert!(file.settings.is_empty());
    let short = parse(&with("conntrack: {udpTimeout: 3s}")).unwrap();
    assert_eq!((short.settings[0].value.as_str(), short.notes.len()), ("10", 1));
}

#[test]
fn s_63_what_nobody_knows_is_an_error_with_its_path() {
    let text = error("conntrack: {maxPerCor: 5}\nmetricsbindaddress: x\niptables: {bit: 1}");
    for part in [
        "conntrack.maxPerCor is no field",
        "metricsbindaddress is no field of KubeProxyConfiguration (it is spelled metricsBindAddress)",
        "iptables.bit is no field",
    ] {
        assert!(text.contains(part), "{text}");
    }
    for (fields, path) in [
        ("conntrack: {udpTimeout: 30}", "conntrack.udpTimeout is 30; expected a duration"),
        ("oomScoreAdj: low", "oomScoreAdj is \"low\"; expected a whole number"),
        ("nodePortAddresses: primary", "nodePortAddresses is \"primary\"; expected a list"),
        ("bindAddressHardFail: 1", "bindAddressHardFail is 1; expected true or false"),
        ("iptables: 7", "iptables is 7; expected an object"),
        ("mode: kernelspace", "mode is \"kernelspace\""),
        ("bindAddress: here", "bindAddress is \"here\""),
        ("detectLocalMode: BridgeInterface", "detectLocal.bridgeInterface"),
        ("detectLocalMode: Guess", "detectLocalMode is \"Guess\""),
        ("logging: {format: xml}", "logging.format is \"xml\""),
    ] {
        assert!(error(fields).contains(path), "{fields}: {}", error(fields));
    }
    assert!(parse("kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1").is_err());
    assert!(parse("").is_err() && parse("[1").is_err() && parse("a: 1\na: 2").is_err());
    let twice = with("mode: ipvs\nmode: iptables");
    assert!(parse(&twice).is_err(), "a field twice");
    let text = read(Path::new("/nonexistent/lbt.yaml")).unwrap_err().to_string();
    assert!(text.contains("/nonexistent/lbt.yaml") && text.contains("No such file"), "{text}");
}

#[test]
fn s_63_json_is_read_like_yaml() {
    let text = r#"{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "hostnameOverride": "n1"}"#;
    assert_eq!(parse(text).unwrap().settings[0].value, "n1");
}
