//! Services: defaults, and the addresses and ports the server hands out.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use serde_json::{Value, json};

use super::{
    defaults::{default, remove},
    random::Random,
    resources::ResourceType,
    status::ApiError,
    store::text,
};

/// A range ClusterIPs are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    first: u128,
    size: u128,
    ipv6: bool,
}

impl Range {
    /// Parses `address/length`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/')?;
        let (address, length): (IpAddr, u32) = (address.parse().ok()?, length.parse().ok()?);
        let bits = if address.is_ipv6() { 128 } else { 32 };
        let host_bits = bits.max(length) - length;
        let size = 1_u128.checked_shl(host_bits).unwrap_or(u128::MAX);
        let first = bits_of(address) & !(size - 1);
        // The real server uses at most 65536 addresses of an IPv6 range.
        Some(Self { first, size: size.min(1 << 20), ipv6: address.is_ipv6() })
    }

    /// The address at this position in the range.
    pub(crate) fn nth(&self, position: u128) -> IpAddr {
        let bits = self.first + position;
        if self.ipv6 {
            Ipv6Addr::from_bits(bits).into()
        } else {
            Ipv4Addr::from_bits(u32::try_from(bits & u128::from(u32::MAX)).unwrap_or_default()).into()
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        let bits = bits_of(address);
        address.is_ipv6() == self.ipv6 && bits > self.first && bits - self.first < self.size
    }
}

fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv6() { "IPv6" } else { "IPv4" }
}

/// Addresses and node ports in use.
#[derive(Debug)]
pub(crate) struct Allocator {
    ranges: Vec<Range>,
    node_ports: RangeInclusive<u16>,
    addresses: HashSet<IpAddr>,
    /// Protocol and port, as TCP and UDP may share a number.
    ports: HashSet<(String, u16)>,
}

impl Allocator {
    pub(crate) fn new(ranges: Vec<Range>, node_ports: RangeInclusive<u16>) -> Self {
        Self { ranges, node_ports, addresses: HashSet::new(), ports: HashSet::new() }
    }

    /// The first range: of the primary family.
    pub(crate) fn primary(&self) -> Option<&Range> {
        self.ranges.first()
    }

    fn range(&self, family: &str) -> Option<&Range> {
        self.ranges.iter().find(|range| range.ipv6 == (family == "IPv6"))
    }

    fn free_address(&self, family: &str, random: &mut Random) -> Option<IpAddr> {
        let range = self.range(family)?;
        // Not the network's own address, nor the last one.
        let usable = u64::try_from(range.size).unwrap_or(u64::MAX).saturating_sub(2);
        (0..10_000)
            .map(|_| range.nth(u128::from(1 + random.below(usable))))
            .find(|it| !self.addresses.contains(it))
    }

    /// A free node port, see [`Allocator::is_free`].
    fn free_port(&self, protocol: &str, own: &HashSet<(String, u16)>, random: &mut Random) -> Option<u16> {
        let (first, last) = (*self.node_ports.start(), *self.node_ports.end());
        let count = u64::from(last - first) + 1;
        let offset = random.below(count);
        let mut ports =
            (0..count).map(|step| first + u16::try_from((offset + step) % count).unwrap_or_default());
        ports.find(|port| self.is_free(protocol, *port, own))
    }

    /// Whether neither another Service has that node port nor the one that is being completed, which has `own` so far.
    fn is_free(&self, protocol: &str, port: u16, own: &HashSet<(String, u16)>) -> bool {
        let key = (protocol.to_owned(), port);
        !self.ports.contains(&key) && !own.contains(&key)
    }

    /// Returns what a Service held.
    pub(crate) fn release(&mut self, service: &Value) {
        for address in addresses(service) {
            self.addresses.remove(&address);
        }
        for port in node_ports(service) {
            self.ports.remove(&port);
        }
    }

    /// Takes what a complete Service holds.
    pub(crate) fn occupy(&mut self, service: &Value) {
        self.addresses.extend(addresses(service));
        self.ports.extend(node_ports(service));
    }

    /// Completes a Service: defaults, families, addresses, node ports. `old` is its state before an update. On success
    /// the Service's holdings are taken and those of `old` returned; on failure nothing changes.
    pub(crate) fn complete(
        &mut self,
        service: &mut Value,
        old: Option<&Value>,
        random: &mut Random,
    ) -> Result<(), ApiError> {
        if let Some(old) = old {
            self.release(old);
        }
        let done = self.fill(service, old, random);
        match (&done, old) {
            (Ok(()), _) => self.occupy(service),
            (Err(_), Some(old)) => self.occupy(old),
            (Err(_), None) => {}
        }
        done
    }

    fn fill(&self, service: &mut Value, old: Option<&Value>, random: &mut Random) -> Result<(), ApiError> {
        let resource = service_type();
        let name = text(service, "/metadata/name").to_owned();
        let invalid = |field: &str, why: &str| ApiError::invalid(resource, &name, field, why);
        default(service, "spec", json!({}));
        default(service, "status", json!({}));
        default(&mut service["status"], "loadBalancer", json!({}));
        if let Some(ingress) =
            service.pointer_mut("/status/loadBalancer/ingress").and_then(Value::as_array_mut)
        {
            for entry in ingress.iter_mut().filter(|entry| entry.get("ip").is_some()) {
                default(entry, "ipMode", "VIP");
            }
        }
        default(&mut service["spec"], "type", "ClusterIP");
        default(&mut service["spec"], "sessionAffinity", "None");
        self.session_affinity(&mut service["spec"]);
        let kind = text(service, "/spec/type").to_owned();
        if !["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].contains(&kind.as_str()) {
            return Err(invalid(
                "spec.type",
                &format!(
                    "Unsupported value: {kind:?}: supported values: \"ClusterIP\", \"ExternalName\", \
                     \"LoadBalancer\", \"NodePort\""
                ),
            ));
        }
        self.ports(service, &invalid)?;
        if kind == "ExternalName" {
            if text(service, "/spec/externalName").is_empty() {
                return Err(invalid("spec.externalName", "Required value"));
            }
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                remove(&mut service["spec"], field);
            }
        } else {
            default(&mut service["spec"], "internalTrafficPolicy", "Cluster");
            self.families(service, old, random, &invalid)?;
        }
        self.external(service, old, random, &invalid)
    }

    fn session_affinity(&self, spec: &mut Value) {
        if spec["sessionAffinity"] == "ClientIP" {
            default(spec, "sessionAffinityConfig", json!({}));
            default(&mut spec["sessionAffinityConfig"], "clientIP", json!({}));
            default(&mut spec["sessionAffinityConfig"]["clientIP"], "timeoutSeconds", 10_800);
        } else {
            remove(spec, "sessionAffinityConfig");
        }
    }

    fn ports(&self, service: &mut Value, invalid: &impl Fn(&str, &str) -> ApiError) -> Result<(), ApiError> {
        let headless = text(service, "/spec/clusterIP") == "None";
        let external = service["spec"]["type"] == "ExternalName";
        let Some(ports) = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut) else {
            let none_needed = headless || external;
            return if none_needed { Ok(()) } else { Err(invalid("spec.ports", "Required value")) };
        };
        if ports.is_empty() && !headless && !external {
            return Err(invalid("spec.ports", "Required value"));
        }
        let (several, mut names, mut seen) = (ports.len() > 1, HashSet::new(), HashSet::new());
        for (position, port) in ports.iter_mut().enumerate() {
            let field = |field: &str| format!("spec.ports[{position}].{field}");
            let number = port.get("port").and_then(Value::as_u64).filter(|it| (1..=65_535).contains(it));
            let Some(number) = number else {
                return Err(invalid(&field("port"), "Invalid value: must be between 1 and 65535, inclusive"));
            };
            default(port, "protocol", "TCP");
            default(port, "targetPort", number);
            let name = text(port, "/name").to_owned();
            if several && name.is_empty() {
                return Err(invalid(&field("name"), "Required value"));
            }
            if !names.insert(name.clone()) {
                return Err(invalid(&field("name"), &format!("Duplicate value: {name:?}")));
            }
            if !seen.insert((text(port, "/protocol").to_owned(), number)) {
                return Err(invalid(&format!("spec.ports[{position}]"), "Duplicate value"));
            }
        }
        Ok(())
    }

    fn families(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        random: &mut Random,
        invalid: &impl Fn(&str, &str) -> ApiError,
    ) -> Result<(), ApiError> {
        let headless = text(service, "/spec/clusterIP") == "None"
            || service.pointer("/spec/clusterIPs/0").and_then(Value::as_str) == Some("None");
        let has_selector =
            service.pointer("/spec/selector").and_then(Value::as_object).is_some_and(|it| !it.is_empty());
        let mut wanted = self.wanted_addresses(service, old, headless, invalid)?;
        let spec = &mut service["spec"];
        let mut families: Vec<String> = spec
            .get("ipFamilies")
            .and_then(Value::as_array)
            .map(|list| list.iter().filter_map(|it| it.as_str().map(str::to_owned)).collect())
            .unwrap_or_default();
        for (position, address) in wanted.iter().enumerate() {
            match families.get(position) {
                None => families.push(family(*address).to_owned()),
                Some(stated) if stated != family(*address) => {
                    return Err(invalid(
                        &format!("spec.clusterIPs[{position}]"),
                        &format!(
                            "Invalid value: \"{address}\": expected an {stated} value as indicated by \
                             `ipFamilies[{position}]`"
                        ),
                    ));
                }
                Some(_) => {}
            }
        }
        // A headless Service without selector may be given endpoints of any family.
        let anything = headless && !has_selector && families.is_empty();
        let fallback = match (anything, families.len()) {
            (true, _) | (_, 2..) => "RequireDualStack",
            _ => "SingleStack",
        };
        default(spec, "ipFamilyPolicy", fallback);
        let policy = text(spec, "/ipFamilyPolicy").to_owned();
        if families.is_empty() {
            let first = self.ranges.first().is_some_and(|range| range.ipv6);
            families.push(if first { "IPv6" } else { "IPv4" }.to_owned());
        }
        let other = if families[0] == "IPv4" { "IPv6" } else { "IPv4" };
        match policy.as_str() {
            "SingleStack" => {
                if wanted.len() > 1 && old.is_none() {
                    return Err(invalid(
                        "spec.ipFamilyPolicy",
                        "Invalid value: \"SingleStack\": may only be one of PreferDualStack or RequireDualStack when \
                         multiple IP families are specified",
                    ));
                }
                families.truncate(1);
                wanted.truncate(1);
            }
            "PreferDualStack" | "RequireDualStack" => {
                if families.len() < 2 && (anything || self.range(other).is_some()) {
                    families.push(other.to_owned());
                }
                if policy == "RequireDualStack" && families.len() < 2 {
                    return Err(invalid(
                        "spec.ipFamilyPolicy",
                        "Invalid value: \"RequireDualStack\": Cluster is not configured for dual-stack services",
                    ));
                }
            }
            _ => return Err(invalid("spec.ipFamilyPolicy", "Unsupported value")),
        }
        spec["ipFamilies"] = families.clone().into();
        if headless {
            spec["clusterIP"] = "None".into();
            spec["clusterIPs"] = vec!["None"].into();
            return Ok(());
        }
        for family in families.iter().skip(wanted.len()) {
            if self.range(family).is_none() {
                return Err(invalid(
                    "spec.ipFamilies[0]",
                    &format!("Invalid value: {family:?}: not configured on this cluster"),
                ));
            }
            let address = self
                .free_address(family, random)
                .ok_or_else(|| ApiError::new(500, "InternalError", "no free cluster IP"))?;
            wanted.push(address);
        }
        // What was asked for stays as it was written.
        let asked = strings(service, "/spec/clusterIPs").into_iter();
        let mut asked: Vec<String> = asked.chain([text(service, "/spec/clusterIP").to_owned()]).collect();
        asked.retain(|it| !it.is_empty());
        let written = |address: &IpAddr| asked.iter().find(|it| address_of(it) == Some(*address)).cloned();
        let texts: Vec<String> =
            wanted.iter().map(|it| written(it).unwrap_or_else(|| it.to_string())).collect();
        let spec = &mut service["spec"];
        spec["clusterIP"] = texts[0].clone().into();
        spec["clusterIPs"] = texts.into();
        Ok(())
    }

    /// The addresses a Service asks for, or keeps.
    fn wanted_addresses(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        headless: bool,
        invalid: &impl Fn(&str, &str) -> ApiError,
    ) -> Result<Vec<IpAddr>, ApiError> {
        if headless {
            return Ok(Vec::new());
        }
        let kept = old.map(addresses).unwrap_or_default();
        let (first, mut list) =
            (text(service, "/spec/clusterIP").to_owned(), strings(service, "/spec/clusterIPs"));
        if list.is_empty() && !first.is_empty() {
            list.push(first.clone());
        }
        if !first.is_empty() && list.first() != Some(&first) {
            return Err(invalid("spec.clusterIPs", "Invalid value: first value must match `clusterIP`"));
        }
        let mut wanted: Vec<IpAddr> = Vec::new();
        for (position, address) in list.iter().filter(|it| !it.is_empty()).enumerate() {
            let field = format!("spec.clusterIPs[{position}]");
            let parsed = address_of(address).ok_or_else(|| {
                invalid(&field, &format!("Invalid value: {address:?}: must be a valid IP address"))
            })?;
            wanted.push(parsed);
        }
        if wanted.is_empty() {
            return Ok(kept);
        }
        if let (Some(old), Some(new)) = (kept.first(), wanted.first())
            && old != new
        {
            return Err(invalid(
                "spec.clusterIPs[0]",
                &format!("Invalid value: [\"{new}\"]: may not change once set"),
            ));
        }
        for address in &wanted {
            let refuse = |why: &str| {
                invalid(
                    "spec.clusterIPs",
                    &format!("Invalid value: [\"{address}\"]: failed to allocate IP {address}: {why}"),
                )
            };
            if !self.ranges.iter().any(|range| range.contains(*address)) {
                return Err(refuse("the provided network does not match the current range"));
            }
            if self.addresses.contains(address) {
                return Err(refuse("provided IP is already allocated"));
            }
        }
        Ok(wanted)
    }

    /// Node ports, and the fields that only Services reachable from outside have.
    fn external(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        random: &mut Random,
        invalid: &impl Fn(&str, &str) -> ApiError,
    ) -> Result<(), ApiError> {
        let kind = text(service, "/spec/type").to_owned();
        let balanced = kind == "LoadBalancer";
        let spec = &mut service["spec"];
        let external_ips =
            spec.get("externalIPs").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        if balanced {
            default(spec, "allocateLoadBalancerNodePorts", true);
        } else {
            for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
                remove(spec, field);
            }
        }
        if balanced || kind == "NodePort" || (kind == "ClusterIP" && external_ips) {
            default(spec, "externalTrafficPolicy", "Cluster");
        } else {
            remove(spec, "externalTrafficPolicy");
        }
        let local = balanced && spec["externalTrafficPolicy"] == "Local";
        let give = kind == "NodePort" || (balanced && spec["allocateLoadBalancerNodePorts"] == true);
        let may_have = kind == "NodePort" || balanced;
        let mut taken: HashSet<(String, u16)> = HashSet::new();
        let mut by_number: std::collections::HashMap<u64, u16> = std::collections::HashMap::new();
        let count = spec.get("ports").and_then(Value::as_array).map_or(0, Vec::len);
        for position in 0..count {
            let port = &mut spec["ports"][position];
            if !may_have {
                remove(port, "nodePort");
                continue;
            }
            let protocol = text(port, "/protocol").to_owned();
            let number = port["port"].as_u64().unwrap_or_default();
            let field = format!("spec.ports[{position}].nodePort");
            let asked = port.get("nodePort").and_then(Value::as_u64).filter(|it| *it != 0);
            let kept = || old.and_then(|old| old_node_port(old, &protocol, number));
            let chosen = match asked {
                Some(asked) => {
                    let asked = u16::try_from(asked).ok().filter(|it| self.node_ports.contains(it)).ok_or_else(|| {
                        invalid(&field, &format!(
                            "Invalid value: {asked}: provided port is not in the valid range. The range of valid ports \
                             is {}-{}", self.node_ports.start(), self.node_ports.end()))
                    })?;
                    if !self.is_free(&protocol, asked, &taken) {
                        return Err(invalid(
                            &field,
                            &format!("Invalid value: {asked}: provided port is already allocated"),
                        ));
                    }
                    Some(asked)
                }
                None if !give => None,
                // TCP and UDP on one port number get the same node port.
                None => kept()
                    .or_else(|| by_number.get(&number).copied())
                    .filter(|it| self.is_free(&protocol, *it, &taken))
                    .or_else(|| self.free_port(&protocol, &taken, random)),
            };
            if let Some(chosen) = chosen {
                by_number.insert(number, chosen);
                taken.insert((protocol, chosen));
                port["nodePort"] = chosen.into();
            }
        }
        if local {
            let kept = old.and_then(|old| old.pointer("/spec/healthCheckNodePort")).cloned();
            let fresh = || self.free_port("TCP", &taken, random).map(Value::from);
            if spec.get("healthCheckNodePort").is_none_or(Value::is_null)
                && let Some(port) = kept.or_else(fresh)
            {
                spec["healthCheckNodePort"] = port;
            }
        } else {
            remove(spec, "healthCheckNodePort");
        }
        Ok(())
    }
}

fn service_type() -> &'static ResourceType {
    ResourceType::by_plural("services").unwrap_or(&super::resources::RESOURCES[0])
}

fn strings(object: &Value, pointer: &str) -> Vec<String> {
    let list = object.pointer(pointer).and_then(Value::as_array);
    list.map(|list| list.iter().filter_map(|it| it.as_str().map(str::to_owned)).collect()).unwrap_or_default()
}

fn addresses(service: &Value) -> Vec<IpAddr> {
    strings(service, "/spec/clusterIPs").iter().filter_map(|it| address_of(it)).collect()
}

/// An address as the real server reads it: leading zeros of an IPv4 octet mean nothing (`ParseIPSloppy`).
fn address_of(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse().ok();
    }
    let significant = |octet: &str| match octet.trim_start_matches('0') {
        "" if !octet.is_empty() => "0".to_owned(),
        rest => rest.to_owned(),
    };
    text.split('.').map(significant).collect::<Vec<_>>().join(".").parse().ok()
}

fn node_ports(service: &Value) -> Vec<(String, u16)> {
    let number = |value: Option<&Value>| value.and_then(Value::as_u64).and_then(|it| u16::try_from(it).ok());
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    let mut taken: Vec<(String, u16)> = ports
        .into_iter()
        .flatten()
        .filter_map(|port| Some((text(port, "/protocol").to_owned(), number(port.get("nodePort"))?)))
        .collect();
    taken.extend(number(service.pointer("/spec/healthCheckNodePort")).map(|port| ("TCP".to_owned(), port)));
    taken
}

fn old_node_port(old: &Value, protocol: &str, number: u64) -> Option<u16> {
    let ports = old.pointer("/spec/ports")?.as_array()?;
    let same = ports.iter().find(|it| text(it, "/protocol") == protocol && it["port"] == number)?;
    u16::try_from(same.get("nodePort")?.as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The real server takes all of a Service's node ports out of one set, that of its health check, too.
    #[test]
    fn the_node_ports_of_a_service_differ() {
        let mut random = Random::new();
        for _ in 0..64 {
            let range = Range::parse("10.96.0.0/16").unwrap();
            let mut allocator = Allocator::new(vec![range], 30_000..=30_003);
            let port = |number: u16, protocol: &str| {
                json!({
                    "name": format!("{protocol}{number}").to_lowercase(), "port": number, "protocol": protocol,
                })
            };
            let mut service = json!({"spec": {
                "type": "LoadBalancer", "externalTrafficPolicy": "Local",
                "ports": [port(80, "TCP"), port(81, "TCP"), port(80, "UDP"), port(82, "TCP")],
            }});
            allocator.complete(&mut service, None, &mut random).unwrap();
            let tcp = node_ports(&service).into_iter().filter(|(protocol, _)| protocol == "TCP");
            let tcp: HashSet<u16> = tcp.map(|(_, port)| port).collect();
            assert_eq!(tcp.len(), 4, "{service}");
            let ports = &service["spec"]["ports"];
            assert_eq!(ports[0]["nodePort"], ports[2]["nodePort"], "one number, one node port");
        }
    }
}
