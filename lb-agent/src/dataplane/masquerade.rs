//! The addresses that masqueraded flows get, by the device they leave by (map `MASQUERADE`).

use std::collections::BTreeMap;

use lb_common::layout::MasqueradeAddresses;

use super::error::{Error, Result};
use super::maps::Maps;
use super::shape::Map;
use super::sys;

/// Key of the row that stands for every device without one.
const DEFAULT: u32 = 0;

/// Access to the map.
#[derive(Clone, Copy, Debug)]
pub struct Masquerade<'m> {
    maps: &'m Maps,
}

impl<'m> Masquerade<'m> {
    /// The map among `maps`.
    pub fn new(maps: &'m Maps) -> Self {
        Self { maps }
    }

    /// Makes these the only rows; interface 0 stands for every device without a row. Flows that are masqueraded already
    /// keep the address they have. Where there are more devices than [`MasqueradeAddresses::ROWS`], those with the
    /// highest numbers get the address of interface 0; returns how many did.
    ///
    /// # Errors
    /// [`Error::Bpf`] when the map cannot be read or written.
    pub fn replace(&self, rows: &BTreeMap<u32, MasqueradeAddresses>) -> Result<usize> {
        let room = MasqueradeAddresses::ROWS.min(self.maps.max_entries(Map::Masquerade)) as usize;
        let kept: BTreeMap<u32, [u8; VALUE]> =
            rows.iter().take(room).map(|(interface, addresses)| (*interface, encode(addresses))).collect();
        // What goes makes room first, except for the default: every device is to have some address at any time.
        for key in self.keys()? {
            if key != DEFAULT && !kept.contains_key(&key) {
                self.delete(key)?;
            }
        }
        for (key, value) in &kept {
            if self.get(*key)? != Some(*value) {
                sys::update(self.maps.fd(Map::Masquerade), &key.to_ne_bytes(), value).map_err(writing)?;
            }
        }
        if !kept.contains_key(&DEFAULT) {
            self.delete(DEFAULT)?;
        }
        Ok(rows.len() - kept.len())
    }

    fn keys(&self) -> Result<Vec<u32>> {
        let fd = self.maps.fd(Map::Masquerade);
        let (mut keys, mut next) = (Vec::new(), [0; 4]);
        let mut key = None;
        while sys::next_key(fd, key.as_ref().map(|key: &[u8; 4]| key.as_slice()), &mut next)
            .map_err(reading)?
        {
            keys.push(u32::from_ne_bytes(next));
            key = Some(next);
        }
        Ok(keys)
    }

    fn get(&self, key: u32) -> Result<Option<[u8; VALUE]>> {
        let mut value = [0; VALUE];
        let found = sys::lookup(self.maps.fd(Map::Masquerade), &key.to_ne_bytes(), &mut value);
        Ok(found.map_err(reading)?.then_some(value))
    }

    fn delete(&self, key: u32) -> Result<()> {
        sys::delete(self.maps.fd(Map::Masquerade), &key.to_ne_bytes()).map(drop).map_err(writing)
    }
}

const VALUE: usize = size_of::<MasqueradeAddresses>();

/// The bytes of a row: the IPv6 address in two words, the IPv4 address, zeros.
fn encode(addresses: &MasqueradeAddresses) -> [u8; VALUE] {
    let mut bytes = [0; VALUE];
    bytes[..8].copy_from_slice(&addresses.v6.first().to_ne_bytes());
    bytes[8..16].copy_from_slice(&addresses.v6.last().to_ne_bytes());
    bytes[16..20].copy_from_slice(&addresses.v4.raw().to_ne_bytes());
    bytes
}

fn reading(source: std::io::Error) -> Error {
    Error::bpf("reading the addresses for masquerading", source)
}

fn writing(source: std::io::Error) -> Error {
    Error::bpf("storing the addresses for masquerading", source)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn addresses_lie_in_memory_as_they_go_over_the_wire() {
        let (v4, v6) = (Ipv4Addr::new(192, 0, 2, 7), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, 2));
        let bytes = encode(&MasqueradeAddresses { v4: v4.into(), v6: v6.into(), zero: 0 });
        assert_eq!(bytes[std::mem::offset_of!(MasqueradeAddresses, v6)..16], v6.octets());
        assert_eq!(bytes[std::mem::offset_of!(MasqueradeAddresses, v4)..20], v4.octets());
        assert_eq!(encode(&MasqueradeAddresses::default()), [0; VALUE]);
    }
}
