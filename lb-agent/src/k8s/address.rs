//! Parsing of IP addresses as Kubernetes writes them (S-12).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Parses an address; leading zeros of an IPv4 octet mean nothing, `010.0.0.1` is `10.0.0.1` (S-12). An IPv4 address
/// written as IPv6 (`::ffff:10.0.0.1`) comes out as IPv4.
pub(super) fn parse(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse::<Ipv6Addr>().ok().map(|ip| IpAddr::V6(ip).to_canonical());
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = parse_octet(parts.next()?)?;
    }
    parts.next().is_none().then_some(IpAddr::V4(Ipv4Addr::from(octets)))
}

fn parse_octet(text: &str) -> Option<u8> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // Only zeros are left of a value that fits, however long it is written.
    let digits = text.trim_start_matches('0');
    if digits.is_empty() { Some(0) } else { digits.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn leading_zeros_are_decimal() {
        for (text, expected) in [
            ("10.0.0.1", "10.0.0.1"),
            ("010.000.008.099", "10.0.8.99"),
            ("0000000001.2.3.4", "1.2.3.4"),
            ("0.0.0.0", "0.0.0.0"),
            ("fd00::1", "fd00::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(parse(text), Some(expected.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "1",
            "1.2.3",
            "1.2.3.4.5",
            "256.1.1.1",
            "1.2.3.-4",
            "+1.2.3.4",
            "1..2.3",
            "a.b.c.d",
            "1.2.3.4/24",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        for text in ["fe80::1%eth0", ":::", "1.2.3.4:80", "[::1]", " 10.0.0.1", "0x0a.0.0.1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
