//! Whether everything has caught up with everything: pods, slices, tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use lb_agent::{
    model::{Family, ObjectName, Protocol},
    plan::ServicePortKey,
};

use super::{Cluster, Tables};

/// Names the Service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What is still to happen in a namespace; `None` once all agrees.
pub(super) fn missing(cluster: &Cluster, namespace: &str) -> anyhow::Result<Option<String>> {
    let deployments: Vec<Deployment> = cluster.api().list(Some(namespace), "")?;
    for deployment in &deployments {
        // The status may not have heard yet what happened to a pod: the pods themselves count.
        let spec = deployment.spec.clone().unwrap_or_default();
        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or_default();
        let labels = selector(&spec.selector.match_labels.unwrap_or_default());
        let pods: Vec<Pod> = cluster.api().list(Some(namespace), &labels)?;
        let current = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).count();
        let ready = pods.iter().filter(|pod| is_ready(pod)).count();
        if (current, ready) != (wanted, wanted) {
            let name = deployment.metadata.name.as_deref().unwrap_or_default();
            return Ok(Some(format!("Deployment {name} has {ready} of {wanted} pods ready")));
        }
    }
    let services: Vec<Service> = cluster.api().list(Some(namespace), "")?;
    let slices: Vec<EndpointSlice> = cluster.api().list(Some(namespace), "")?;
    for service in &services {
        if let Some(missing) = slices_behind(cluster, namespace, service, &slices)? {
            return Ok(Some(missing));
        }
    }
    for pod in cluster.pods(namespace, "")? {
        if !cluster.is_attached(&pod) {
            return Ok(Some(format!("no programs at the device of pod {}", pod.name())));
        }
    }
    for agent in cluster.agents() {
        let tables = cluster.tables(agent.node())?;
        for service in &services {
            if let Some(missing) = tables_behind(&tables, namespace, service, &slices) {
                return Ok(Some(format!("tables of {}: {missing}", agent.node().name())));
            }
        }
    }
    Ok(None)
}

/// Whether the slices of a Service with a selector list exactly the ready pods.
fn slices_behind(
    cluster: &Cluster,
    namespace: &str,
    service: &Service,
    slices: &[EndpointSlice],
) -> anyhow::Result<Option<String>> {
    let spec = service.spec.clone().unwrap_or_default();
    let labels = spec.selector.unwrap_or_default();
    if labels.is_empty() || spec.type_.as_deref() == Some("ExternalName") {
        return Ok(None);
    }
    let pods: Vec<Pod> = cluster.api().list(Some(namespace), &selector(&labels))?;
    let families = spec.ip_families.unwrap_or_default();
    let is_served = |address: &IpAddr| families.iter().any(|family| (family == "IPv4") == address.is_ipv4());
    let ready: BTreeSet<IpAddr> =
        pods.iter().filter(|pod| is_ready(pod)).flat_map(addresses).filter(is_served).collect();
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let listed: BTreeSet<IpAddr> = of_service(slices, name)
        .flat_map(|slice| slice.endpoints.iter())
        .filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        })
        .flat_map(|endpoint| endpoint.addresses.iter().filter_map(|address| address.parse().ok()))
        .collect();
    Ok((ready != listed).then(|| format!("slices of {name} list {listed:?}, ready pods are {ready:?}")))
}

fn selector(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.is_some_and(|conditions| {
            conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        })
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let ips = pod.status.as_ref().and_then(|status| status.pod_ips.clone()).unwrap_or_default();
    ips.iter().filter_map(|ip| ip.ip.parse().ok()).collect()
}

fn of_service<'a>(slices: &'a [EndpointSlice], name: &'a str) -> impl Iterator<Item = &'a EndpointSlice> {
    slices.iter().filter(move |slice| {
        slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(SERVICE_NAME))
            .is_some_and(|it| it == name)
    })
}

/// Whether a node's tables choose from exactly what the slices list.
fn tables_behind(
    tables: &Tables,
    namespace: &str,
    service: &Service,
    slices: &[EndpointSlice],
) -> Option<String> {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let spec = service.spec.clone().unwrap_or_default();
    let ips = spec.cluster_ips.unwrap_or_default();
    let ips: Vec<IpAddr> = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    let wanted = choosable(slices, name);
    for ip in &ips {
        for port in spec.ports.iter().flatten() {
            let family = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => continue,
                _ => Protocol::Tcp,
            };
            let port_name = port.name.clone().unwrap_or_default();
            let key = ServicePortKey {
                service: ObjectName::new(namespace, name),
                port_name: port_name.as_str().into(),
                protocol,
                family,
            };
            let wanted = wanted.get(&(family, port_name)).cloned().unwrap_or_default();
            let Some(row) = tables.service(&key) else { return Some(format!("{key} is missing")) };
            let has_frontend = row.frontends.iter().any(|frontend| frontend.address == *ip);
            let chosen = tables.chosen(row);
            if chosen != wanted || !has_frontend {
                return Some(format!("{key} chooses from {chosen:?} instead of {wanted:?}"));
            }
        }
    }
    None
}

/// The endpoints of a Service by family and port name: those that are ready, else those that serve while they terminate
/// (S-20).
fn choosable(slices: &[EndpointSlice], name: &str) -> BTreeMap<(Family, String), BTreeSet<SocketAddr>> {
    let mut choices: [BTreeMap<(Family, String), BTreeSet<SocketAddr>>; 2] = Default::default();
    for slice in of_service(slices, name) {
        let family = if slice.address_type == "IPv6" { Family::V6 } else { Family::V4 };
        for port in slice.ports.iter().flatten() {
            let Some(number) = port.port.and_then(|number| u16::try_from(number).ok()) else { continue };
            for endpoint in &slice.endpoints {
                let conditions = endpoint.conditions.clone().unwrap_or_default();
                let ready = conditions.ready.unwrap_or(true);
                let fallback = conditions.serving.unwrap_or(ready) && conditions.terminating == Some(true);
                let choice = match (ready, fallback) {
                    (true, _) => 0,
                    (false, true) => 1,
                    (false, false) => continue,
                };
                let key = (family, port.name.clone().unwrap_or_default());
                let addresses = endpoint.addresses.iter().filter_map(|address| address.parse().ok());
                let addresses = addresses.map(|address: IpAddr| SocketAddr::new(address, number));
                choices[choice].entry(key).or_default().extend(addresses);
            }
        }
    }
    let [mut choices, fallback] = choices;
    for (key, endpoints) in fallback {
        choices.entry(key).or_insert(endpoints);
    }
    choices
}
