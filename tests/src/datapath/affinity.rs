//! The affinity tables (S-40), read and changed entry by entry.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, MapData};

use super::Datapath;

/// Bytes of key and value by family: `AffinityKey` and `AffinityEntry`.
const FOUR: (usize, usize) = (12, 20);
const SIX: (usize, usize) = (24, 32);

/// What is remembered of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Address of the endpoint.
    pub address: IpAddr,
    /// Port of the endpoint.
    pub port: u16,
    /// Index of its backend row.
    pub backend: u32,
    /// Monotonic second of the client's last new connection.
    pub last_new: u32,
}

fn key(client: IpAddr, service: u32) -> Vec<u8> {
    let mut key = match client {
        IpAddr::V4(client) => client.octets().to_vec(),
        IpAddr::V6(client) => client.octets().to_vec(),
    };
    key.extend(service.to_ne_bytes());
    key.extend([0; 4]);
    key
}

fn decode(value: &[u8]) -> Affinity {
    let (address, rest) = value.split_at(value.len() - 16);
    let word = |at: usize| u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
    let address = match <[u8; 4]>::try_from(address) {
        Ok(octets) => octets.into(),
        Err(_) => <[u8; 16]>::try_from(address).expect("4 or 16 octets").into(),
    };
    Affinity { address, port: u16::from_be_bytes([rest[8], rest[9]]), backend: word(0), last_new: word(4) }
}

impl Datapath {
    /// What is remembered of a client of a Service.
    ///
    /// # Errors
    /// When there is no such table.
    pub fn affinity(&mut self, client: IpAddr, service: u32) -> Result<Option<Affinity>> {
        let key = key(client, service);
        if client.is_ipv4() {
            let key: [u8; FOUR.0] = key.try_into().expect("a key");
            Ok(self.affinities4()?.get(&key, 0).ok().map(|value| decode(&value)))
        } else {
            let key: [u8; SIX.0] = key.try_into().expect("a key");
            Ok(self.affinities6()?.get(&key, 0).ok().map(|value| decode(&value)))
        }
    }

    /// Forgets every affinity.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn forget_affinities(&mut self) -> Result<()> {
        let mut four = self.affinities4()?;
        for key in four.keys().collect::<Result<Vec<_>, _>>()? {
            four.remove(&key)?;
        }
        let mut six = self.affinities6()?;
        for key in six.keys().collect::<Result<Vec<_>, _>>()? {
            six.remove(&key)?;
        }
        Ok(())
    }

    /// Makes what is remembered of a client older.
    ///
    /// # Errors
    /// When nothing is.
    pub fn age_affinity(&mut self, client: IpAddr, service: u32, seconds: u32) -> Result<()> {
        fn age(value: &mut [u8], seconds: u32) {
            let at = value.len() - 12;
            let field = &mut value[at..at + 4];
            let time = u32::from_ne_bytes(field.try_into().expect("four bytes"));
            field.copy_from_slice(&time.saturating_sub(seconds).to_ne_bytes());
        }
        let key = key(client, service);
        if client.is_ipv4() {
            let key: [u8; FOUR.0] = key.try_into().expect("a key");
            let mut value = self.affinities4()?.get(&key, 0)?;
            age(&mut value, seconds);
            Ok(self.affinities4()?.insert(key, value, 0)?)
        } else {
            let key: [u8; SIX.0] = key.try_into().expect("a key");
            let mut value = self.affinities6()?.get(&key, 0)?;
            age(&mut value, seconds);
            Ok(self.affinities6()?.insert(key, value, 0)?)
        }
    }

    fn affinities4(&mut self) -> Result<HashMap<&mut MapData, [u8; FOUR.0], [u8; FOUR.1]>> {
        Ok(self.ebpf.map_mut("AFFINITY4").context("map AFFINITY4")?.try_into()?)
    }

    fn affinities6(&mut self) -> Result<HashMap<&mut MapData, [u8; SIX.0], [u8; SIX.1]>> {
        Ok(self.ebpf.map_mut("AFFINITY6").context("map AFFINITY6")?.try_into()?)
    }
}
