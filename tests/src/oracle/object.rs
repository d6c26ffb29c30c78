//! Fields of objects as the API server stores them.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;

/// Text at a place in an object; empty when there is none.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The elements of a list in an object; none when there is no list.
pub(super) fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The texts of a list in an object.
pub(super) fn texts<'a>(object: &'a Value, pointer: &str) -> Vec<&'a str> {
    items(object, pointer).iter().filter_map(Value::as_str).collect()
}

/// A port number at a place in an object; `None` for none and for 0.
pub(super) fn port(object: &Value, pointer: &str) -> Option<u16> {
    let number = object.pointer(pointer).and_then(Value::as_u64)?;
    u16::try_from(number).ok().filter(|port| *port != 0)
}

/// The protocol of a port of a Service or slice: TCP, when it says nothing (S-10).
pub(super) fn protocol(port: &Value) -> &str {
    match text(port, "/protocol") {
        "" => "TCP",
        protocol => protocol,
    }
}

/// Whether a traffic policy is `Local`; nothing at all means `Cluster` (S-14).
pub(super) fn is_local(object: &Value, pointer: &str) -> bool {
    text(object, pointer) == "Local"
}

/// An IP address. IPv4 octets with leading zeros are decimal numbers (S-12).
pub(super) fn address(written: &str) -> Option<IpAddr> {
    if written.contains(':') {
        return written.parse().ok();
    }
    let mut octets = Vec::new();
    for part in written.split('.') {
        let digits_only = !part.is_empty() && part.chars().all(|digit| digit.is_ascii_digit());
        let without_zeros = part.trim_start_matches('0');
        let octet: u8 = match (digits_only, without_zeros) {
            (false, _) => return None,
            (true, "") => 0,
            (true, digits) => digits.parse().ok()?,
        };
        octets.push(octet);
    }
    let octets: [u8; 4] = octets.try_into().ok()?;
    Some(Ipv4Addr::from(octets).into())
}

/// The addresses of a list of texts, of one family (S-04).
pub(super) fn addresses(object: &Value, pointer: &str, ipv4: bool) -> Vec<IpAddr> {
    let all = texts(object, pointer).into_iter().filter_map(address);
    all.filter(|address| address.is_ipv4() == ipv4).collect()
}

/// The cluster IPs of one family. A Service stored before there were several has one only.
pub(super) fn cluster_ips(service: &Value, ipv4: bool) -> Vec<IpAddr> {
    let several = addresses(service, "/spec/clusterIPs", ipv4);
    if !several.is_empty() {
        return several;
    }
    let one = address(text(service, "/spec/clusterIP"));
    one.into_iter().filter(|address| address.is_ipv4() == ipv4).collect()
}

/// Seconds of client affinity: three hours, unless the Service says otherwise (S-40).
pub(super) fn affinity_seconds(service: &Value) -> Option<u64> {
    let seconds = service.pointer("/spec/sessionAffinityConfig/clientIP/timeoutSeconds");
    (text(service, "/spec/sessionAffinity") == "ClientIP")
        .then(|| seconds.and_then(Value::as_u64).unwrap_or(10_800))
}
