//! The address of an endpoint goes to another pod, behind another Service, within a second. Whatever remembers the old one
//! (connections, affinity, sockets of the node) must not lead clients of the first Service to the second's pod.

use crate::{
    case::netexec,
    conntrack::{Flow, source_port},
    prelude::*,
};

/// The titles.
pub(super) fn titles() -> Vec<Title> {
    vec![
        Title::new(
            "should lead nobody to a pod of another Service that was given the address of a former endpoint",
            reused,
        )
        .each_family(),
    ]
}

/// Sooner than any memory of a flow ends by itself: a datagram flow's lasts 30 seconds.
const SOON: Duration = Duration::from_secs(10);

/// A netexec pod with these addresses.
async fn pod_at(case: &Case, name: &str, node: usize, app: &str, addresses: &[IpAddr]) -> Result<()> {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    case.api().create(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": case.namespace(), "labels": {"app": app},
            "annotations": {"cni.projectcalico.org/ipAddrs": json!(addresses).to_string()},
        },
        "spec": {
            "nodeName": case.node(node).name(),
            "containers": [netexec(&["--http-port=8080", "--udp-port=8081"])],
        },
    }))?;
    let cluster = case.cluster();
    case.eventually("the pod with the address is there", async || {
        Ok(cluster.runtime().pod(case.namespace(), name).is_some_and(|pod| cluster.is_attached(&pod)))
    })
    .await
}

async fn reused(case: Case) -> Result<()> {
    let spec = json!({"type": "NodePort", "sessionAffinity": "ClientIP"});
    let (first, second) = (case.service("first", spec.clone())?, case.service("second", spec)?);
    let old = case.backend("first", 1).await?;
    let addresses = old.pod.addresses().to_vec();
    let pod = case.pod("client", 0).await?;
    let (host, outside) = (case.host(0), case.outside(0));
    let node = case.node_ip(0)?;
    let ways = |service: &Svc| {
        let (cluster, number) = (service.cluster_ip()?, service.node_port(80, Protocol::Tcp)?);
        let udp = service.node_port(81, Protocol::Udp)?;
        anyhow::Ok([
            (pod.caller().clone(), SocketAddr::new(cluster, 80), SocketAddr::new(cluster, 81)),
            (host.clone(), SocketAddr::new(cluster, 80), SocketAddr::new(cluster, 81)),
            (outside.clone(), SocketAddr::new(node, number), SocketAddr::new(node, udp)),
        ])
    };
    let (to_first, to_second) = (ways(&first)?, ways(&second)?);
    // All that can remember: affinity, streams, datagram flows, ports of choice.
    let (mut streams, mut flows, mut ports) = (Vec::new(), Vec::new(), Vec::new());
    for (caller, tcp, udp) in &to_first {
        case.comes_to_reach(caller, *tcp, Protocol::Tcp, &[old.name()]).await?;
        streams.push(caller.http_flow(*tcp).await?);
        let kind = if caller.name() == host.name() { UdpKind::Unconnected } else { UdpKind::Connected };
        let flow = Flow::of_kind(caller, *udp, kind).await?;
        flow.comes_to(&case, old.name()).await?;
        flows.push(flow);
        let from = caller.from_port(source_port());
        ensure!(from.hostname(*tcp).await? == old.name(), "another pod");
        ports.push(from);
    }
    // The pod goes, and its address comes back at once: behind the second Service, on the same node.
    let begin = Instant::now();
    case.delete_pod(old.name(), Duration::ZERO)?;
    case.eventually("the old pod is gone", async || {
        Ok(case.cluster().runtime().pod(case.namespace(), old.name()).is_none())
    })
    .await?;
    pod_at(&case, "usurper", 1, "second", &addresses).await?;
    let elapsed = begin.elapsed();
    // Less than a second, unless the machine is busy; what is remembered, is remembered for minutes at least.
    ensure!(elapsed < SOON, "the lab took {elapsed:.1?} to give the address away");
    for ((caller, tcp, _), stream) in to_second.iter().zip(&streams) {
        case.comes_to_reach(caller, *tcp, Protocol::Tcp, &["usurper"]).await?;
        // The stream ended with its pod: its segments come to a kernel that does not know them.
        let answer = stream.get("/hostname").await;
        ensure!(answer.is_err(), "the stream of {} is answered: {answer:?}", caller.name());
    }
    // Nobody stands behind the first Service now.
    for ((caller, tcp, udp), from) in to_first.iter().zip(&ports) {
        case.refuses(caller, *udp, Protocol::Udp).await?;
        case.refuses(caller, *tcp, Protocol::Tcp).await?;
        case.refuses(from, *tcp, Protocol::Tcp).await?;
    }
    for flow in &flows {
        flow.is_refused(&case).await?;
    }
    let next = case.backend("first", 2).await?;
    for (((caller, tcp, _), from), flow) in to_first.iter().zip(&ports).zip(&flows) {
        case.comes_to_reach(caller, *tcp, Protocol::Tcp, &[next.name()]).await?;
        case.stays("the port of choice", 3, async || from.hostname(*tcp).await, is(next.name())).await?;
        flow.comes_to(&case, next.name()).await?;
    }
    for (caller, tcp, udp) in &to_second {
        case.stays("the second", 5, async || caller.hostname(*tcp).await, is("usurper")).await?;
        case.stays("the second", 5, async || caller.udp_hostname(*udp).await, is("usurper")).await?;
    }
    Ok(())
}
