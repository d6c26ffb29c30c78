//! Service -> [`model::Service`] (S-01, S-03, S-14).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service, ServicePort, ServiceSpec};
use lb_common::layout::Algorithm;

use super::{Converter, Reduced};
use crate::k8s::guarded::object_name;
use crate::k8s::{Selection, address};
use crate::model::{self, Cidr, Few, IngressAddress, Rare, ServiceType, TrafficPolicy};

/// Seconds of client IP affinity when the object does not say (S-40).
const DEFAULT_AFFINITY: u32 = 10_800;
/// The longest affinity the API allows, one day.
const MAX_AFFINITY: i32 = 86_400;

/// Reduces a Service. Headless ones and those of another proxy are not ours (S-01).
pub(in crate::k8s) fn service(
    object: &Service,
    selection: &Selection,
    converter: &mut Converter,
) -> Reduced<model::Service> {
    if !selection.matches(object.metadata.labels.as_ref()) {
        return Reduced::Ignore;
    }
    let Some(spec) = &object.spec else { return Reduced::Bad("it has no spec".into()) };
    if spec.cluster_ip.as_deref() == Some("None") {
        return Reduced::Ignore;
    }
    let service_type = match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(other) => return Reduced::Bad(format!("unknown type {other:?}")),
    };
    let name = object_name(&object.metadata);
    let health_check_node_port = spec.health_check_node_port.filter(|port| *port != 0);
    Reduced::Keep(model::Service {
        name: converter.name(&name.namespace, &name.name),
        created: object.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        service_type,
        cluster_ips: cluster_ips(spec, converter),
        external_ips: addresses("externalIPs", spec.external_ips.as_deref().unwrap_or_default(), converter)
            .into_iter()
            .collect(),
        ingress: ingress(object, converter),
        ports: ports(spec.ports.as_deref().unwrap_or_default(), converter),
        affinity_timeout: affinity(spec, converter),
        algorithm: algorithm(object, selection, converter),
        internal_policy: policy("internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), converter),
        external_policy: policy("externalTrafficPolicy", spec.external_traffic_policy.as_deref(), converter),
        source_ranges: source_ranges(spec, converter),
        health_check_node_port: health_check_node_port
            .and_then(|port| converter.port("healthCheckNodePort", port))
            .unwrap_or(0),
    })
}

/// `clusterIPs`, or `clusterIP` in objects that have only that (hand-written ones).
fn cluster_ips(spec: &ServiceSpec, converter: &mut Converter) -> Few<IpAddr> {
    match spec.cluster_ips.as_deref() {
        Some(addresses_given) if !addresses_given.is_empty() => {
            addresses("clusterIPs", addresses_given, converter)
        }
        _ => addresses("clusterIP", spec.cluster_ip.as_slice(), converter),
    }
}

fn addresses(field: &str, given: &[String], converter: &mut Converter) -> Few<IpAddr> {
    let mut out = Few::with_capacity(given.len());
    for text in given.iter().filter(|text| !text.is_empty()) {
        match address::parse(text) {
            Some(address) if !address.is_unspecified() => out.push(address),
            _ => converter.skip(format_args!("{field}: {text:?} is no usable address")),
        }
    }
    out
}

fn ingress(object: &Service, converter: &mut Converter) -> Rare<IngressAddress> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let entries = status.and_then(|load_balancer| load_balancer.ingress.as_deref()).unwrap_or_default();
    entries.iter().filter_map(|entry| ingress_address(entry, converter)).collect()
}

/// An entry with an address; one with only a host name is none of ours (S-14).
fn ingress_address(entry: &LoadBalancerIngress, converter: &mut Converter) -> Option<IngressAddress> {
    let ip = entry.ip.as_slice();
    let address = addresses("status.loadBalancer.ingress.ip", ip, converter).first().copied()?;
    match entry.ip_mode.as_deref() {
        None | Some("VIP") => Some(IngressAddress { address, proxy_mode: false }),
        Some("Proxy") => Some(IngressAddress { address, proxy_mode: true }),
        Some(other) => {
            converter.skip(format_args!("status.loadBalancer.ingress.ipMode: unknown mode {other:?}"));
            None
        }
    }
}

fn ports(given: &[ServicePort], converter: &mut Converter) -> Few<model::ServicePort> {
    given.iter().filter_map(|port| service_port(port, converter)).collect()
}

fn service_port(port: &ServicePort, converter: &mut Converter) -> Option<model::ServicePort> {
    let number = converter.port("ports.port", port.port)?;
    let protocol = converter.protocol("ports.protocol", port.protocol.as_deref())?;
    let node_port = port.node_port.filter(|number| *number != 0);
    Some(model::ServicePort {
        name: converter.share(port.name.as_deref().unwrap_or_default()),
        protocol,
        port: number,
        node_port: node_port.and_then(|number| converter.port("ports.nodePort", number)).unwrap_or(0),
    })
}

fn affinity(spec: &ServiceSpec, converter: &mut Converter) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            converter.skip(format_args!("sessionAffinity: unknown kind {other:?}"));
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    match config.and_then(|config| config.timeout_seconds) {
        None => Some(DEFAULT_AFFINITY),
        Some(seconds @ 1..=MAX_AFFINITY) => Some(seconds.unsigned_abs()),
        Some(other) => {
            converter.skip(format_args!("sessionAffinityConfig: timeout of {other} s is out of range"));
            Some(DEFAULT_AFFINITY)
        }
    }
}

/// The annotation that says how new connections of a Service choose an endpoint.
const LOAD_BALANCING: &str = "lb-agent/load-balancing";

fn algorithm(object: &Service, selection: &Selection, converter: &mut Converter) -> Algorithm {
    let annotations = object.metadata.annotations.as_ref();
    match annotations.and_then(|annotations| annotations.get(LOAD_BALANCING)).map(String::as_str) {
        None | Some("") => selection.algorithm,
        Some("random") => Algorithm::Random,
        Some("maglev") => Algorithm::Maglev,
        Some(other) => {
            converter
                .skip(format_args!("annotation {LOAD_BALANCING}: {other:?} is neither random nor maglev"));
            selection.algorithm
        }
    }
}

fn policy(field: &str, text: Option<&str>, converter: &mut Converter) -> TrafficPolicy {
    match text {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            converter.skip(format_args!("{field}: unknown policy {other:?}"));
            TrafficPolicy::Cluster
        }
    }
}

/// The sources that load balancer VIPs are for. An entry that cannot be read, which the API refuses, restricts but admits
/// nobody: no client has the unspecified address. Left out, it might have been the last one, and its family open.
fn source_ranges(spec: &ServiceSpec, converter: &mut Converter) -> Rare<Cidr> {
    let given = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let trimmed = given.iter().map(|range| range.trim()).filter(|range| !range.is_empty());
    trimmed
        .map(|text| {
            address::parse_range(text).unwrap_or_else(|| {
                converter
                    .skip(format_args!("loadBalancerSourceRanges: {text:?} is no range, it admits nobody"));
                let v6 = text.contains(':');
                let nobody: IpAddr =
                    if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
                Cidr::host(nobody)
            })
        })
        .collect()
}
