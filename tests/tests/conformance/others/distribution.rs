//! Endpoints close to the client: hints for zones and nodes, and what happens when they lead to nobody.

use lb_tests::cluster::ClusterBuilder;

use crate::prelude::*;

/// `traffic_distribution.go`. Zones of several nodes need a cluster of their own; what the hints mean is decided before shape
/// and mode come in, and the last title asks both.
pub(super) fn titles() -> Vec<Title> {
    let mut titles = Vec::new();
    for policy in ["PreferClose", "PreferSameZone"] {
        titles.push(
            Title::new(
                format!("should route traffic to an endpoint in the same zone when using {policy}"),
                move |case| same_zone(case, policy),
            )
            .once()
            .each_family()
            .alone(three_zones),
        );
        titles.push(
            Title::new(
                format!("should route traffic correctly between pods on multiple nodes when using {policy}"),
                move |case| multiple_nodes(case, policy),
            )
            .once()
            .alone(three_zones_of_two),
        );
    }
    titles.push(
        Title::new(
            "should route traffic to an endpoint on the same node or fall back to same zone when using PreferSameNode",
            same_node_or_zone,
        )
        .once()
        .alone(three_zones_of_two),
    );
    titles.push(
        Title::new(
            "should route traffic to an endpoint on the same node when using PreferSameNode and fall back when the \
             endpoint becomes unavailable",
            same_node_falls_back,
        )
        .each_family(),
    );
    titles
}

/// `topology_hints.go`.
pub(super) fn hints() -> Vec<Title> {
    vec![Title::new("should distribute endpoints evenly", evenly).once().each_family().alone(three_zones)]
}

fn three_zones(builder: ClusterBuilder) -> ClusterBuilder {
    builder.zones(["a", "b", "c"])
}

fn three_zones_of_two(builder: ClusterBuilder) -> ClusterBuilder {
    builder.nodes(6).zones(["a", "a", "b", "b", "c", "c"])
}

/// A pod and a process of each of these nodes meet all of their servers, and then, ten times, no other.
async fn is_distributed(case: &Case, to: SocketAddr, wanted: &[(usize, Vec<&str>)]) -> Result<()> {
    for (node, servers) in wanted {
        let name = format!("client-{node}");
        let pod = match case.cluster().runtime().pod(case.namespace(), &name) {
            Some(pod) => Caller::at(format!("pod {name}"), &pod),
            None => case.pod(&name, *node).await?.caller().clone(),
        };
        for caller in [pod, case.host(*node)] {
            case.comes_to_reach(&caller, to, Protocol::Tcp, servers).await?;
            case.stays("close by", 10, async || caller.hostname(to).await, any_of(servers)).await?;
        }
    }
    Ok(())
}

async fn same_zone(case: Case, policy: &'static str) -> Result<()> {
    let service = case.service("web", json!({"trafficDistribution": policy}))?;
    let (first, second) = (case.backend("web", 0).await?, case.backend("web", 1).await?);
    let (first, second) = (first.name(), second.name());
    let wanted = [(0, vec![first]), (1, vec![second]), (2, vec![first, second])];
    is_distributed(&case, service.cluster(80)?, &wanted).await
}

async fn multiple_nodes(case: Case, policy: &'static str) -> Result<()> {
    let service = case.service("web", json!({"trafficDistribution": policy}))?;
    // The first zone: a server on each node. The second: on the other node only. The third: none.
    let servers =
        [case.backend("web", 0).await?, case.backend("web", 1).await?, case.backend("web", 3).await?];
    let [first, second, third] = servers.each_ref().map(PodClient::name);
    let wanted = [
        (0, vec![first, second]),
        (1, vec![first, second]),
        (2, vec![third]),
        (4, vec![first, second, third]),
    ];
    is_distributed(&case, service.cluster(80)?, &wanted).await
}

async fn same_node_or_zone(case: Case) -> Result<()> {
    let service = case.service("web", json!({"trafficDistribution": "PreferSameNode"}))?;
    let servers =
        [case.backend("web", 0).await?, case.backend("web", 1).await?, case.backend("web", 3).await?];
    let [first, second, third] = servers.each_ref().map(PodClient::name);
    let wanted = [
        (0, vec![first]),
        (1, vec![second]),
        (2, vec![third]),
        (3, vec![third]),
        (4, vec![first, second, third]),
    ];
    is_distributed(&case, service.cluster(80)?, &wanted).await
}

async fn same_node_falls_back(case: Case) -> Result<()> {
    let service = case.service("web", json!({"trafficDistribution": "PreferSameNode"}))?;
    let to = service.cluster(80)?;
    let (near, far) = (case.backend("web", 0).await?, case.backend("web", 2).await?);
    let beside = [(0, vec![near.name()]), (2, vec![far.name()])];
    is_distributed(&case, to, &beside).await?;
    // The node between is in the zone of the first.
    is_distributed(&case, to, &[(1, vec![near.name()])]).await?;
    case.set_ready(near.name(), false)?;
    is_distributed(&case, to, &[(0, vec![far.name()]), (1, vec![far.name()])]).await?;
    case.set_ready(near.name(), true)?;
    is_distributed(&case, to, &beside).await?;
    case.delete_pod(near.name(), Duration::ZERO)?;
    is_distributed(&case, to, &[(0, vec![far.name()]), (1, vec![far.name()])]).await?;
    let again = case.backend("web", 0).await?;
    is_distributed(&case, to, &[(0, vec![again.name()]), (1, vec![again.name()]), (2, vec![far.name()])])
        .await
}

async fn evenly(case: Case) -> Result<()> {
    // What the controller makes of `topology-mode: Auto`, with one endpoint in each of three equal zones.
    let service = case.service("web", json!({"selector": null}))?;
    service.patch_object(
        &json!({"metadata": {"annotations": {"service.kubernetes.io/topology-mode": "Auto"}}}),
    )?;
    let mut pods = Vec::new();
    for node in 0..3 {
        pods.push(case.pod(&format!("server-{node}"), node).await?);
    }
    let zones = ["a", "b", "c"];
    let write = |hinted: [bool; 3]| {
        let endpoints: Vec<Value> = (0..3)
            .map(|node| {
                let mut endpoint = json!({
                    "addresses": [pods[node].ip()], "nodeName": case.node(node).name(), "zone": zones[node],
                });
                if hinted[node] {
                    endpoint["hints"] = json!({"forZones": [{"name": zones[node]}]});
                }
                endpoint
            })
            .collect();
        let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
        case.slice("by-hand", "web", ports, endpoints.into())
    };
    write([true; 3])?;
    let to = service.cluster(80)?;
    let names: Vec<&str> = pods.iter().map(PodClient::name).collect();
    let close: Vec<_> = (0..3).map(|node| (node, vec![names[node]])).collect();
    is_distributed(&case, to, &close).await?;
    // One endpoint without a hint, and hints count for nobody.
    write([true, true, false])?;
    is_distributed(&case, to, &[(0, names.clone()), (1, names.clone()), (2, names.clone())]).await?;
    write([true; 3])?;
    is_distributed(&case, to, &close).await
}
