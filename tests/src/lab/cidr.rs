//! Address ranges.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use anyhow::Context;

/// A range of addresses such as `10.244.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

impl Cidr {
    /// A range from its first address and prefix length; bits beyond the prefix are cleared.
    ///
    /// # Errors
    /// The length exceeds the address family's.
    pub fn new(address: IpAddr, length: u8) -> anyhow::Result<Self> {
        let address = match address {
            IpAddr::V4(v4) if length <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) if length <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
            _ => anyhow::bail!("prefix length {length} is too long for {address}"),
        };
        Ok(Self { address, length })
    }

    /// The first address of the range.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The prefix length.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether the range is one of IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// The address `n` after the first one. The caller keeps `n` inside the range.
    pub fn nth(&self, n: u32) -> IpAddr {
        match self.address {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits().wrapping_add(n)).into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits().wrapping_add(n.into())).into(),
        }
    }

    /// Whether `address` lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address, self.length)
            .is_ok_and(|range| range == *self && address.is_ipv4() == self.is_ipv4())
    }

    /// How many hosts to hand out addresses to: all but the first and the last, 65,000 at most.
    pub(crate) fn hosts(&self) -> u32 {
        let bits = if self.is_ipv4() { 32 } else { 128 } - u32::from(self.length);
        if bits >= 16 { 65_000 } else { (1_u32 << bits).saturating_sub(2) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Cidr {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (address, length) =
            text.split_once('/').with_context(|| format!("{text} has no prefix length"))?;
        Self::new(address.parse().with_context(|| text.to_owned())?, length.parse()?)
    }
}

#[cfg(test)]
mod tests {
    use super::Cidr;

    #[test]
    fn host_bits_are_cleared_and_ranges_contain_their_addresses() {
        let range: Cidr = "10.244.3.7/24".parse().unwrap();
        assert_eq!(range.to_string(), "10.244.3.0/24");
        assert_eq!(range.nth(9).to_string(), "10.244.3.9");
        assert!(range.contains("10.244.3.255".parse().unwrap()));
        assert!(!range.contains("10.244.4.0".parse().unwrap()));
        assert!(!range.contains("::a".parse().unwrap()));
        let all: Cidr = "1.2.3.4/0".parse().unwrap();
        assert!(all.contains("255.1.1.1".parse().unwrap()));
        assert!(!all.contains("::1".parse().unwrap()));
        let six: Cidr = "fd00:10:244:1::/64".parse().unwrap();
        assert_eq!(six.nth(2).to_string(), "fd00:10:244:1::2");
        assert_eq!((range.hosts(), six.hosts()), (254, 65_000));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["10.0.0.0", "10.0.0.0/33", "::/129", "x/1", "10.0.0.0/-1"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
