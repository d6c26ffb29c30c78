//! Address ranges.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Serialize, Serializer};

use super::Family;

/// An address range such as `10.0.0.0/8`: the bits after the prefix are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The range that an address lies in; `None` when the prefix is longer than addresses of the family.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(address) => {
                let host = 32u32.checked_sub(prefix.into())?;
                let mask = u32::MAX.checked_shl(host).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
            }
            IpAddr::V6(address) => {
                let host = 128u32.checked_sub(prefix.into())?;
                let mask = u128::MAX.checked_shl(host).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
            }
        };
        Some(Self { address, prefix })
    }

    /// The range of that address alone.
    pub const fn host(address: IpAddr) -> Self {
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Its first address.
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// Length of its prefix, in bits.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// Family of its addresses.
    pub fn family(self) -> Family {
        Family::of(self.address)
    }

    /// True when the address lies in it.
    pub fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && Self::new(address, self.prefix) == Some(self)
    }

    /// True when every address of the other range lies in it.
    pub fn covers(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }

    /// The range that is exactly these two together, when there is one: they are the halves of it.
    pub fn join(self, other: Self) -> Option<Self> {
        let whole = Self::new(self.address, self.prefix.checked_sub(1)?)?;
        (self.prefix == other.prefix && self != other && whole.covers(other)).then_some(whole)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        let (address, prefix) = text.split_once('/').unwrap();
        Cidr::new(address.parse().unwrap(), prefix.parse().unwrap()).unwrap()
    }

    #[test]
    fn bits_after_the_prefix_are_cleared() {
        for (text, expected) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3/32", "10.1.2.3/32"),
            ("10.1.2.3/0", "0.0.0.0/0"),
            ("2001:db8::1/64", "2001:db8::/64"),
            ("2001:db8::1/0", "::/0"),
        ] {
            assert_eq!(cidr(text).to_string(), expected);
        }
        assert_eq!(Cidr::new("10.0.0.0".parse().unwrap(), 33), None);
        assert_eq!(Cidr::new("::".parse().unwrap(), 129), None);
    }

    #[test]
    fn a_range_has_the_addresses_of_its_family_with_its_prefix() {
        let inside = |range: &str, address: &str| cidr(range).contains(address.parse().unwrap());
        assert!(inside("10.0.0.0/9", "10.127.255.255") && !inside("10.0.0.0/9", "10.128.0.0"));
        assert!(inside("0.0.0.0/0", "1.2.3.4") && !inside("0.0.0.0/0", "::1") && !inside("::/0", "1.2.3.4"));
        assert!(inside("fd00::/8", "fd12::1") && !inside("fd00::/8", "fe80::1"));
        assert!(
            cidr("10.0.0.0/8").covers(cidr("10.0.0.0/8")) && cidr("10.0.0.0/8").covers(cidr("10.9.0.0/16"))
        );
        assert!(!cidr("10.0.0.0/8").covers(cidr("10.0.0.0/7")) && !cidr("::/0").covers(cidr("10.0.0.0/8")));
    }

    #[test]
    fn the_halves_of_a_range_join_to_it() {
        let joined = |one: &str, other: &str| cidr(one).join(cidr(other)).map(|whole| whole.to_string());
        assert_eq!(joined("10.0.0.0/9", "10.128.0.0/9").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(joined("8000::/1", "::/1").as_deref(), Some("::/0"));
        for (one, other) in [
            ("10.0.0.0/9", "10.0.0.0/9"),
            ("10.128.0.0/9", "11.0.0.0/9"),
            ("10.0.0.0/9", "10.128.0.0/10"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("0.0.0.0/1", "8000::/1"),
        ] {
            assert_eq!(joined(one, other), None, "{one} and {other}");
        }
    }
}
