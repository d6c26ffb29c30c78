//! Parsing of IP addresses as Kubernetes writes them (S-12).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::Cidr;

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

/// Parses a range such as `10.0.0.0/8`, its address as [`parse`] does. Bits after the prefix mean nothing.
pub(super) fn parse_range(text: &str) -> Option<Cidr> {
    let (address, prefix) = text.split_once('/')?;
    let length = parse_octet(prefix)?;
    let written = parse(address)?;
    let mapped = written.is_ipv4() && address.contains(':');
    Cidr::new(written, if mapped { length.checked_sub(96)? } else { length })
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
    use super::{parse, parse_range};

    #[test]
    fn ranges_are_parsed_like_their_addresses() {
        for (text, expected) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("010.1.2.3/08", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ] {
            assert_eq!(parse_range(text).map(|range| range.to_string()).as_deref(), Some(expected), "{text}");
        }
        for text in [
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "::/129",
            "::ffff:10.0.0.0/8",
            "/8",
            "x/8",
        ] {
            assert_eq!(parse_range(text), None, "{text}");
        }
    }

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
