//! EndpointSlice -> [`model::EndpointSlice`] (S-02, S-04, S-11, S-12, S-80).

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};

use super::{Converter, Reduced};
use crate::k8s::guarded::object_name;
use crate::k8s::{Selection, address};
use crate::model::{self, Conditions, Family, Few, Rare};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Reduces a slice. Those of another proxy, of no Service, and FQDN slices are not ours (S-02, S-04).
pub(in crate::k8s) fn endpoint_slice(
    object: &EndpointSlice,
    selection: &Selection,
    converter: &mut Converter,
) -> Reduced<model::EndpointSlice> {
    let labels = object.metadata.labels.as_ref();
    if !selection.matches(labels) {
        return Reduced::Ignore;
    }
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return Reduced::Ignore,
        other => return Reduced::Bad(format!("unknown addressType {other:?}")),
    };
    let service = labels.and_then(|labels| labels.get(SERVICE_NAME)).filter(|name| !name.is_empty());
    let Some(service) = service else {
        converter
            .skip(format_args!("label {SERVICE_NAME} is missing or empty: the slice belongs to no Service"));
        return Reduced::Ignore;
    };
    let name = object_name(&object.metadata);
    Reduced::Keep(model::EndpointSlice {
        name: converter.name(&name.namespace, &name.name),
        service: model::ObjectName {
            namespace: converter.share(&name.namespace),
            name: converter.share(service),
        },
        family,
        ports: ports(object.ports.as_deref().unwrap_or_default(), converter),
        endpoints: object.endpoints.iter().filter_map(|e| endpoint(e, family, converter)).collect(),
    })
}

/// When the change behind this version of the slice happened in the cluster (S-62).
pub(in crate::k8s) fn last_change(object: &EndpointSlice) -> Option<Timestamp> {
    let annotations = object.metadata.annotations.as_ref()?;
    annotations.get(LAST_CHANGE)?.parse().ok()
}

fn ports(given: &[EndpointPort], converter: &mut Converter) -> Few<model::EndpointPort> {
    given.iter().filter_map(|port| endpoint_port(port, converter)).collect()
}

/// A port without name or number is left out: it joins with nothing (S-11).
fn endpoint_port(port: &EndpointPort, converter: &mut Converter) -> Option<model::EndpointPort> {
    let name = port.name.as_deref()?;
    let number = port.port.filter(|number| *number != 0)?;
    Some(model::EndpointPort {
        protocol: converter.protocol("ports.protocol", port.protocol.as_deref())?,
        port: converter.port("ports.port", number)?,
        name: converter.share(name),
    })
}

fn endpoint(endpoint: &Endpoint, family: Family, converter: &mut Converter) -> Option<model::Endpoint> {
    let text = endpoint.addresses.first()?;
    let address = address::parse(text).filter(|address| Family::of(*address) == family);
    let Some(address) = address.filter(|address| !address.is_unspecified()) else {
        converter
            .skip(format_args!("endpoints.addresses: {text:?} is no usable address of the slice's type"));
        return None;
    };
    let conditions = endpoint.conditions.as_ref();
    let hints = endpoint.hints.as_ref();
    let node_name = endpoint.node_name.as_deref().filter(|name| !name.is_empty());
    let zones = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
    let nodes = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
    Some(model::Endpoint {
        address,
        conditions: Conditions {
            ready: conditions.and_then(|c| c.ready).unwrap_or(true),
            serving: conditions.and_then(|c| c.serving).unwrap_or(true),
            terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        },
        node_name: node_name.map(|name| converter.share(name)),
        zone_hints: shared(zones.iter().map(|hint| hint.name.as_str()), converter),
        node_hints: shared(nodes.iter().map(|hint| hint.name.as_str()), converter),
    })
}

fn shared<'a>(names: impl Iterator<Item = &'a str>, converter: &mut Converter) -> Rare<Arc<str>> {
    names.map(|name| converter.share(name)).collect()
}
