//! The objects of a row: a Service without selector, and slices made by hand.

use super::{
    row::{At, Build, Endpoints, Hints, Ranges, Row},
    site::{Site, external_address},
};
use crate::prelude::*;

/// Port of the Services, of both protocols.
const PORT: u16 = 80;
/// Ports of the endpoints.
const ENDPOINT_PORTS: [(&str, &str, u16); 2] = [("web", "TCP", 8080), ("dgram", "UDP", 8081)];

/// What a row consists of, as the API server stores it.
pub(crate) struct Objects {
    pub(crate) service: Value,
    pub(crate) slices: Vec<Value>,
    /// Where the client asks.
    pub(crate) to: SocketAddr,
}

/// Creates them.
pub(crate) fn create(case: &Case, site: &Site, row: &Row, name: &str) -> Result<Objects> {
    let (_, client) = site.client(row)?;
    let external = external_address(row.family);
    let balancer = external_address(row.family);
    let has = |at: At| row.build == Build::Full || row.at == at;
    let balanced = has(At::LoadBalancer);
    let has_node_ports = row.build == Build::Full
        || [At::NodePortOwn, At::NodePortOther, At::NodePortLoopback].contains(&row.at);

    let ports: Vec<Value> = ENDPOINT_PORTS
        .iter()
        .map(|(port, protocol, _)| json!({"name": port, "port": PORT, "protocol": protocol}))
        .collect();
    let mut spec = json!({
        "type": if balanced { "LoadBalancer" } else if has_node_ports { "NodePort" } else { "ClusterIP" },
        "ipFamilyPolicy": "RequireDualStack", "ports": ports, "internalTrafficPolicy": policy(row.internal_local),
    });
    if balanced || has_node_ports || has(At::ExternalIp) {
        spec["externalTrafficPolicy"] = policy(row.external_local).into();
    }
    if balanced {
        spec["allocateLoadBalancerNodePorts"] = has_node_ports.into();
    }
    if has(At::ExternalIp) {
        spec["externalIPs"] = json!([external.to_string()]);
    }
    if row.sticky {
        spec["sessionAffinity"] = "ClientIP".into();
    }
    if row.ranges != Ranges::None {
        spec["loadBalancerSourceRanges"] = json!(ranges(row, client_address(&client)));
    }
    let api = case.api();
    api.create(&json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": case.namespace()}, "spec": spec,
    }))?;
    if balanced {
        let ingress = json!([{"ip": balancer.to_string(), "ipMode": "VIP"}]);
        let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        api.patch_status_value("services", case.namespace(), name, &status)?;
    }
    let mut slices = Vec::new();
    for family in IpFamily::BOTH {
        // One slice for each node. The other family's endpoints are all well: they must not matter.
        let state = if family == row.family { row.endpoints } else { Endpoints::ReadyBoth };
        for (place, numbers) in [("here", 0..2), ("there", 2..4)] {
            let mut endpoints = Vec::new();
            for number in numbers {
                endpoints.extend(endpoint(site, row, family, state, number)?);
            }
            let ports: Vec<Value> = ENDPOINT_PORTS
                .iter()
                .map(|(port, protocol, number)| json!({"name": port, "port": number, "protocol": protocol}))
                .collect();
            slices.push(api.create(&json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{name}-{place}-{}", family.to_string().to_lowercase()),
                    "namespace": case.namespace(), "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": family.to_string(), "ports": ports, "endpoints": endpoints,
            }))?);
        }
    }
    let service = Value::clone(&*api.value("services", case.namespace(), name)?);
    let to = destination(site, row, &service, &client, external, balancer)?;
    Ok(Objects { service, slices, to })
}

fn policy(local: bool) -> &'static str {
    if local { "Local" } else { "Cluster" }
}

fn client_address(client: &lb_tests::oracle::Client) -> IpAddr {
    use lb_tests::oracle::Client;
    match client {
        Client::Pod { address, .. } | Client::Host { address, .. } | Client::Outside { address, .. } => {
            *address
        }
    }
}

/// The source ranges of a row, all of documentation's addresses but for the client's own.
fn ranges(row: &Row, client: IpAddr) -> Vec<String> {
    let strangers = |family| if family == IpFamily::V4 { "192.0.2.0/24" } else { "2001:db8::/32" }.to_owned();
    let other = if row.family == IpFamily::V4 { IpFamily::V6 } else { IpFamily::V4 };
    match row.ranges {
        Ranges::None => Vec::new(),
        Ranges::Allows => {
            vec![strangers(row.family), format!("{client}/{}", if client.is_ipv4() { 32 } else { 128 })]
        }
        Ranges::Forbids => vec![strangers(row.family)],
        Ranges::OtherFamily => vec![strangers(other)],
    }
}

/// The endpoint with this number, when it is listed.
fn endpoint(
    site: &Site,
    row: &Row,
    family: IpFamily,
    state: Endpoints,
    number: usize,
) -> Result<Option<Value>> {
    let here = number < 2;
    let (ready, serving, terminating) = match state {
        Endpoints::ReadyHere if here => (true, true, false),
        Endpoints::ReadyThere if !here => (true, true, false),
        Endpoints::ReadyBoth => (true, true, false),
        Endpoints::ReadyThereEndingHere => (!here, true, here),
        Endpoints::EndingThere if !here => (false, true, true),
        Endpoints::EndingBoth => (false, true, true),
        Endpoints::Unready => (false, false, false),
        Endpoints::ReadyHere | Endpoints::ReadyThere | Endpoints::EndingThere | Endpoints::None => {
            return Ok(None);
        }
    };
    let pod = &site.endpoints[number];
    let node = site.home(pod);
    let machine = site.machines.iter().find(|it| it.name == node).context("an endpoint's node")?;
    let zone = machine.zone.as_deref().context("nodes have zones")?;
    let mut endpoint = json!({
        "addresses": [family.pick(pod.pod.addresses())?.to_string()], "nodeName": node, "zone": zone,
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
    });
    let by_zone = json!({"forZones": [{"name": zone}]});
    match row.hints {
        Hints::Zone => endpoint["hints"] = by_zone,
        Hints::Node => {
            endpoint["hints"] = json!({"forZones": [{"name": zone}], "forNodes": [{"name": node}]});
        }
        // The last one that is listed: of those here when there are none there.
        Hints::Incomplete if number != if state == Endpoints::ReadyHere { 1 } else { 3 } => {
            endpoint["hints"] = by_zone;
        }
        Hints::None | Hints::Incomplete => {}
    }
    Ok(Some(endpoint))
}

fn destination(
    site: &Site,
    row: &Row,
    service: &Value,
    client: &lb_tests::oracle::Client,
    external: IpAddr,
    balancer: IpAddr,
) -> Result<SocketAddr> {
    let node_port = || -> Result<u16> {
        let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let port = ports.iter().find(|port| port["protocol"] == row.transport.name());
        let number = port.and_then(|port| port["nodePort"].as_u64()).context("a node port")?;
        Ok(number.try_into()?)
    };
    Ok(match row.at {
        At::ClusterIp => {
            let ips = service["spec"]["clusterIPs"].as_array().map(Vec::as_slice).unwrap_or_default();
            let ips: Vec<IpAddr> =
                ips.iter().filter_map(Value::as_str).filter_map(|ip| ip.parse().ok()).collect();
            SocketAddr::new(row.family.pick(&ips)?, PORT)
        }
        At::NodePortOwn | At::NodePortOther => SocketAddr::new(site.node_address(row, client)?, node_port()?),
        At::NodePortLoopback => {
            let loopback: IpAddr = if row.family == IpFamily::V4 { "127.0.0.1" } else { "::1" }.parse()?;
            SocketAddr::new(loopback, node_port()?)
        }
        At::ExternalIp => SocketAddr::new(external, PORT),
        At::LoadBalancer => SocketAddr::new(balancer, PORT),
    })
}
