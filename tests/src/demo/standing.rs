//! The cluster comes up.

use std::net::IpAddr;

use anyhow::Context;

use super::{Options, Stage};
use crate::{
    cluster::Cluster,
    lab::{Family, Shape},
    workload::{Netexec, Server},
};

const EXAMPLES: &[(&str, &str)] = &[
    ("snackbar.yaml", include_str!("../../../examples/snackbar.yaml")),
    ("numbers.yaml", include_str!("../../../examples/numbers.yaml")),
    ("database.yaml", include_str!("../../../examples/database.yaml")),
    ("kinds-of-services.yaml", include_str!("../../../examples/kinds-of-services.yaml")),
];
const BY_HAND: &str = include_str!("../../../examples/by-hand.yaml");
/// The endpoint written in [`BY_HAND`].
const PLACEHOLDER: &str = "198.51.100.10";
/// Namespaces of the examples.
pub(super) const NAMESPACES: &[&str] = &["snackbar", "numbers", "default", "kinds", "other"];

pub(super) fn title(options: Options) -> String {
    let shape = match options.shape {
        Shape::Routed => "routed pods",
        Shape::Bridged => "pods behind a bridge",
    };
    let family = match options.family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
        Family::Dual => "dual stack",
    };
    let nodes = match options.nodes {
        1 => "One node".to_owned(),
        2 => "Two nodes".to_owned(),
        nodes => format!("{nodes} nodes"),
    };
    format!("{nodes}, {shape}, {family}, forwarding: {}", options.forwarding.name())
}

pub(super) async fn build(options: Options) -> anyhow::Result<Cluster> {
    Cluster::builder()
        .nodes(options.nodes)
        .clients(1)
        .shape(options.shape)
        .family(options.family)
        .forwarding(options.forwarding)
        .start()
        .await
}

pub(super) async fn tell(stage: &mut Stage) -> anyhow::Result<()> {
    let Stage { cluster, teller } = stage;
    teller.note(
        "Nodes and pods are network namespaces on this kernel. An API server with TLS and a token, controllers and a \
         name server play Kubernetes; on every node runs a real lb-agent, which lists and watches Services and \
         EndpointSlices and keeps the eBPF programs at the pods' devices in step.",
    );
    let nodes: Vec<String> =
        cluster.lab().nodes().iter().map(|node| format!("{} ({})", node.name(), node.address())).collect();
    teller.check(
        cluster.agents().iter().all(|agent| agent.is_ready()),
        format!("agents serve on {}", nodes.join(", ")),
    );
    let requests = cluster.api_server().requests();
    let watches = requests.iter().filter(|request| request.contains("watch=")).count();
    teller.check(
        watches >= 2 * cluster.agents().len(),
        format!("they watch {} ({watches} streams)", cluster.api_server().url()),
    );
    for (name, yaml) in EXAMPLES {
        cluster.apply(yaml).with_context(|| format!("applying examples/{name}"))?;
    }
    let names: Vec<&str> = EXAMPLES.iter().map(|(name, _)| *name).collect();
    let mut slowest = std::time::Duration::ZERO;
    for namespace in NAMESPACES {
        slowest += cluster.settle(namespace).await?;
    }
    let pods = cluster.runtime().pods().len();
    teller.check(
        true,
        format!(
            "applied {}: {pods} pods run and every Service is in every node's tables after {slowest:.1?}",
            names.join(", ")
        ),
    );
    Ok(())
}

/// Serves outside the cluster, and applies the Service whose endpoint is written by hand so that it leads there.
pub(super) async fn by_hand(cluster: &Cluster) -> anyhow::Result<(IpAddr, Server)> {
    let client = cluster.lab().client(0);
    let server = Netexec::new("a host outside the cluster").http(8080).start(client).await?;
    let address = client.address();
    let mut yaml = BY_HAND.replace(PLACEHOLDER, &format!("'{address}'"));
    if address.is_ipv6() {
        yaml = yaml.replace("addressType: IPv4", "addressType: IPv6");
    }
    cluster.apply(&yaml)?;
    Ok((address, server))
}
