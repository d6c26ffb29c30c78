//! The cluster's names, and the records at each of them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use hickory_server::proto::rr::{
    Name, RData, Record,
    rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
};
use serde_json::Value;

use super::{CLUSTER_DOMAIN, TTL};
use crate::apiserver::{ApiHandle, text};

/// Everything that has a name.
pub(super) struct Names {
    api: ApiHandle,
    outside: BTreeMap<String, Vec<IpAddr>>,
}

/// An endpoint of a headless Service.
struct Endpoint {
    /// Its host name, or its address with dashes.
    host: String,
    named: bool,
    address: IpAddr,
    /// Name, protocol, number.
    ports: Vec<(String, String, u16)>,
}

fn address_record(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

/// A fully qualified name; `None` when it is none.
fn name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn service_domain(service: &Value) -> String {
    let (name, namespace) = (text(service, "/metadata/name"), text(service, "/metadata/namespace"));
    format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}")
}

fn is_headless(service: &Value) -> bool {
    service["spec"]["clusterIP"] == "None"
}

fn cluster_ips(service: &Value) -> impl Iterator<Item = IpAddr> + '_ {
    let list = service.pointer("/spec/clusterIPs").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|address| address.as_str()?.parse().ok())
}

impl Names {
    pub(super) fn new(api: ApiHandle, outside: BTreeMap<String, Vec<IpAddr>>) -> Self {
        Self { api, outside }
    }

    /// Whether the name is in a zone this server is responsible for.
    pub(super) fn is_ours(&self, name: &Name) -> bool {
        [CLUSTER_DOMAIN, "in-addr.arpa", "ip6.arpa"]
            .iter()
            .any(|zone| self::name(zone).is_some_and(|zone| zone.zone_of(name)))
    }

    /// The start of authority of the zone a name is in.
    pub(super) fn soa(&self, of: &Name) -> Record {
        let zone = [CLUSTER_DOMAIN, "in-addr.arpa", "ip6.arpa"]
            .iter()
            .filter_map(|zone| name(zone))
            .find(|zone| zone.zone_of(of))
            .unwrap_or_default();
        Record::from_rdata(zone, TTL, self.soa_data())
    }

    fn soa_data(&self) -> RData {
        let server = name(&format!("ns.dns.{CLUSTER_DOMAIN}")).unwrap_or_default();
        let mailbox = name(&format!("hostmaster.{CLUSTER_DOMAIN}")).unwrap_or_default();
        let serial = u32::try_from(self.api.resource_version() % u64::from(u32::MAX)).unwrap_or_default();
        RData::SOA(SOA::new(server, mailbox, serial, 7200, 1800, 86_400, TTL))
    }

    /// All records at a name, none when it only has names below it; `None` when there is no such name.
    pub(super) fn at(&self, name: &Name) -> Option<Vec<RData>> {
        let full = name.to_ascii().to_lowercase();
        let full = full.trim_end_matches('.');
        if let Some(labels) = full.strip_suffix(".in-addr.arpa").or_else(|| full.strip_suffix(".ip6.arpa")) {
            return self.pointers(reverse(labels)?);
        }
        if full == CLUSTER_DOMAIN {
            let server = self::name(&format!("ns.dns.{CLUSTER_DOMAIN}"))?;
            return Some(vec![self.soa_data(), RData::NS(NS(server))]);
        }
        let Some(below) = full.strip_suffix(CLUSTER_DOMAIN).and_then(|it| it.strip_suffix('.')) else {
            let addresses = self.outside.get(full)?;
            return Some(addresses.iter().copied().map(address_record).collect());
        };
        let labels: Vec<&str> = below.split('.').collect();
        match labels.as_slice() {
            ["dns-version"] => Some(vec![RData::TXT(TXT::new(vec!["1.1.0".to_owned()]))]),
            ["dns"] => Some(Vec::new()),
            ["ns", "dns"] => {
                let service = self.api.value("services", "kube-system", "kube-dns").ok()?;
                Some(cluster_ips(&service).map(address_record).collect())
            }
            ["svc" | "pod"] => Some(Vec::new()),
            [namespace, "svc" | "pod"] => {
                self.api.value("namespaces", "", namespace).ok().map(|_| Vec::new())
            }
            [address, namespace, "pod"] => {
                self.api.value("namespaces", "", namespace).ok()?;
                Some(vec![address_record(dashed(address)?)])
            }
            [rest @ .., service, namespace, "svc"] => {
                let service = self.api.value("services", namespace, service).ok()?;
                self.service(&service, rest)
            }
            _ => None,
        }
    }

    fn service(&self, service: &Value, rest: &[&str]) -> Option<Vec<RData>> {
        if service["spec"]["type"] == "ExternalName" {
            let target = name(text(service, "/spec/externalName"))?;
            return rest.is_empty().then(|| vec![RData::CNAME(CNAME(target))]);
        }
        let domain = service_domain(service);
        if is_headless(service) {
            let endpoints = self.endpoints(service);
            return headless(&domain, &endpoints, rest);
        }
        let ports = || service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
        match rest {
            [] => Some(cluster_ips(service).map(address_record).collect()),
            [protocol] => {
                let protocol = protocol.strip_prefix('_')?;
                ports().any(|port| is_protocol(text(port, "/protocol"), protocol)).then(Vec::new)
            }
            [port, protocol] => {
                let (wanted, protocol) = (port.strip_prefix('_')?, protocol.strip_prefix('_')?);
                let found = ports()
                    .find(|it| it["name"] == wanted && is_protocol(text(it, "/protocol"), protocol))?;
                let number = u16::try_from(found["port"].as_u64()?).ok()?;
                Some(vec![RData::SRV(SRV::new(0, 100, number, name(&domain)?))])
            }
            _ => None,
        }
    }

    /// The ready endpoints of a Service.
    fn endpoints(&self, service: &Value) -> Vec<Endpoint> {
        let namespace = text(service, "/metadata/namespace");
        let slices = self.api.values("endpointslices", Some(namespace)).unwrap_or_default();
        let own = |slice: &&Arc<Value>| {
            slice.pointer("/metadata/labels/kubernetes.io~1service-name")
                == Some(&service["metadata"]["name"])
        };
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for slice in slices.iter().filter(own) {
            let port = |port: &Value| {
                let number = u16::try_from(port["port"].as_u64()?).ok()?;
                Some((text(port, "/name").to_owned(), text(port, "/protocol").to_lowercase(), number))
            };
            let ports: Vec<_> = slice["ports"].as_array().into_iter().flatten().filter_map(port).collect();
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                let ready = endpoint["conditions"]["ready"] != false;
                let address = endpoint["addresses"][0].as_str().and_then(|it| it.parse::<IpAddr>().ok());
                let (true, Some(address)) = (ready, address) else { continue };
                if let Some(known) = endpoints.iter_mut().find(|it| it.address == address) {
                    known.ports.extend(ports.iter().cloned());
                    continue;
                }
                let hostname = text(endpoint, "/hostname");
                let named = !hostname.is_empty();
                let host = if named { hostname.to_owned() } else { dashes(address) };
                endpoints.push(Endpoint { host, named, address, ports: ports.clone() });
            }
        }
        endpoints
    }

    fn pointers(&self, address: IpAddr) -> Option<Vec<RData>> {
        let services = self.api.values("services", None).ok()?;
        let mut found = Vec::new();
        for service in &services {
            let domain = service_domain(service);
            if cluster_ips(service).any(|it| it == address) {
                found.extend(name(&domain));
            } else if is_headless(service) {
                let endpoints = self.endpoints(service);
                let own = endpoints.iter().filter(|it| it.named && it.address == address);
                found.extend(own.filter_map(|endpoint| name(&format!("{}.{domain}", endpoint.host))));
            }
        }
        (!found.is_empty()).then(|| found.into_iter().map(|name| RData::PTR(PTR(name))).collect())
    }
}

fn is_protocol(protocol: &str, wanted: &str) -> bool {
    protocol.eq_ignore_ascii_case(wanted)
}

/// The records of a headless Service at `rest` below its domain. Without a ready endpoint the name does not exist.
fn headless(domain: &str, endpoints: &[Endpoint], rest: &[&str]) -> Option<Vec<RData>> {
    let exists = |records: Vec<RData>| (!records.is_empty()).then_some(records);
    match rest {
        [] => exists(endpoints.iter().map(|endpoint| address_record(endpoint.address)).collect()),
        [label] => match label.strip_prefix('_') {
            Some(protocol) => {
                let has = |it: &Endpoint| it.ports.iter().any(|port| port.1 == protocol);
                endpoints.iter().any(has).then(Vec::new)
            }
            None => {
                let own = endpoints.iter().filter(|it| it.host == *label);
                exists(own.map(|endpoint| address_record(endpoint.address)).collect())
            }
        },
        [port, protocol] => {
            let (wanted, protocol) = (port.strip_prefix('_')?, protocol.strip_prefix('_')?);
            let mut records = Vec::new();
            for endpoint in endpoints {
                let ports = endpoint.ports.iter().filter(|port| port.0 == wanted && port.1 == protocol);
                for (_, _, number) in ports {
                    let target = name(&format!("{}.{domain}", endpoint.host))?;
                    let record = RData::SRV(SRV::new(0, 100, *number, target));
                    // Endpoints of both families under one host name are one target.
                    if !records.contains(&record) {
                        records.push(record);
                    }
                }
            }
            exists(records)
        }
        _ => None,
    }
}

/// An address as a label: `10-244-1-2`, `fd00-10-244--2`.
fn dashes(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

fn dashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    v4.or_else(|| label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6))
}

/// The address of a reverse name: four decimal labels, or 32 hexadecimal ones.
fn reverse(labels: &str) -> Option<IpAddr> {
    let labels: Vec<&str> = labels.rsplit('.').collect();
    match labels.len() {
        4 => labels.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        32 => {
            let digits = labels.concat();
            let bits = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32)?;
            Some(Ipv6Addr::from_bits(bits).into())
        }
        _ => None,
    }
}
