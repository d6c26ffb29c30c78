//! The connection tables, read and changed entry by entry.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, MapData};
use lb_common::conntrack::State;
use lb_common::layout::ConnFlags;

use super::Datapath;

/// Addresses and protocol of one direction of a flow, as packets show them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ends {
    /// Where it comes from.
    pub src: SocketAddr,
    /// Where it goes.
    pub dst: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
}

/// An entry of a connection table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What its packets arrive with.
    pub key: Ends,
    /// What they become.
    pub becomes: Ends,
    /// Service index.
    pub service: u32,
    /// Backend index.
    pub backend: u32,
    /// Monotonic second of the first packet.
    pub created: u32,
    /// Device of the client (reply entries).
    pub interface: u32,
    /// MAC address of the client (reply entries).
    pub mac: [u8; 6],
    /// Its state.
    pub state: State,
    /// True for the entry of the answers.
    pub reply: bool,
    /// True when client and endpoint are one pod.
    pub hairpin: bool,
    /// True when the client is outside.
    pub net: bool,
    /// True when the flow is to get another source.
    pub masquerade: bool,
    /// True for the pair that gives it that source.
    pub source: bool,
    /// The source port it got (reply entries of masqueraded flows).
    pub masquerade_port: u16,
}

impl Ends {
    /// The other direction, where nothing is translated.
    #[must_use]
    pub fn turned(&self) -> Self {
        Self { src: self.dst, dst: self.src, ..*self }
    }
}

impl Entry {
    /// The key of the entry for the other direction.
    pub fn other(&self) -> Ends {
        Ends { src: self.becomes.dst, dst: self.becomes.src, protocol: self.key.protocol }
    }
}

/// Length of an address, of a key and of a value.
const FOUR: (usize, usize, usize) = (4, 16, 48);
const SIX: (usize, usize, usize) = (16, 40, 72);

fn ip(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(octets) => octets.into(),
        Err(_) => <[u8; 16]>::try_from(bytes).expect("4 or 16 octets").into(),
    }
}

fn ends(bytes: &[u8], address: usize, protocol: u8) -> Ends {
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let (src, dst) = (ip(&bytes[..address]), ip(&bytes[address..2 * address]));
    Ends {
        src: SocketAddr::new(src, port(2 * address)),
        dst: SocketAddr::new(dst, port(2 * address + 2)),
        protocol,
    }
}

fn key(ends: &Ends) -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut bytes = octets(ends.src.ip());
    bytes.extend(octets(ends.dst.ip()));
    bytes.extend(ends.src.port().to_be_bytes());
    bytes.extend(ends.dst.port().to_be_bytes());
    bytes.extend([ends.protocol, 0, 0, 0]);
    bytes
}

fn decode(key: &[u8], value: &[u8], address: usize) -> Result<Entry> {
    let rest = &value[2 * address + 8..];
    let word = |at: usize| u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
    let protocol = key[2 * address + 4];
    anyhow::ensure!(key[2 * address + 5..] == [0; 3], "padding of a key is set: {key:02x?}");
    Ok(Entry {
        key: ends(key, address, protocol),
        becomes: ends(value, address, protocol),
        service: word(0),
        backend: word(4),
        created: word(8),
        interface: word(16),
        mac: rest[20..26].try_into()?,
        state: State::from_number(rest[26]).with_context(|| format!("state {}", rest[26]))?,
        reply: rest[27] & ConnFlags::REPLY != 0,
        hairpin: rest[27] & ConnFlags::HAIRPIN != 0,
        net: rest[27] & ConnFlags::NET != 0,
        masquerade: rest[27] & ConnFlags::MASQUERADE != 0,
        source: rest[27] & ConnFlags::SOURCE != 0,
        masquerade_port: u16::from_be_bytes([rest[28], rest[29]]),
    })
}

fn sized<const K: usize, const V: usize>(key: &[u8], value: &[u8]) -> Result<([u8; K], [u8; V])> {
    Ok((key.try_into()?, value.try_into()?))
}

impl Datapath {
    /// Every entry of both connection tables.
    ///
    /// # Errors
    /// When a table cannot be read or an entry makes no sense.
    pub fn entries(&mut self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for item in self.conns4()?.iter() {
            let (key, value) = item?;
            entries.push(decode(&key, &value, FOUR.0)?);
        }
        for item in self.conns6()?.iter() {
            let (key, value) = item?;
            entries.push(decode(&key, &value, SIX.0)?);
        }
        Ok(entries)
    }

    /// Every entry of both connection tables as it lies in memory, times and all.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn values(&mut self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut values = BTreeMap::new();
        for item in self.conns4()?.iter() {
            let (key, value) = item?;
            values.insert(key.to_vec(), value.to_vec());
        }
        for item in self.conns6()?.iter() {
            let (key, value) = item?;
            values.insert(key.to_vec(), value.to_vec());
        }
        Ok(values)
    }

    /// The entry of a direction, if there is one.
    ///
    /// # Errors
    /// When the entry makes no sense.
    pub fn entry(&mut self, ends: &Ends) -> Result<Option<Entry>> {
        let key = key(ends);
        let value = self.value(&key);
        value.map(|value| decode(&key, &value, if ends.src.is_ipv6() { SIX.0 } else { FOUR.0 })).transpose()
    }

    /// Monotonic second of the last packet that reached the entry of a direction.
    ///
    /// # Errors
    /// When there is none.
    pub fn last_seen(&mut self, ends: &Ends) -> Result<u32> {
        let value = self.value(&key(ends)).context("no entry")?;
        let at = 2 * if ends.src.is_ipv6() { SIX.0 } else { FOUR.0 } + 8 + 12;
        Ok(u32::from_ne_bytes([value[at], value[at + 1], value[at + 2], value[at + 3]]))
    }

    /// Removes the entry of a direction, as the kernel does when the table is full.
    ///
    /// # Errors
    /// When there is none.
    pub fn evict(&mut self, ends: &Ends) -> Result<()> {
        let key = key(ends);
        if ends.src.is_ipv6() {
            Ok(self.conns6()?.remove(&key.try_into().expect("a key"))?)
        } else {
            Ok(self.conns4()?.remove(&key.try_into().expect("a key"))?)
        }
    }

    /// Removes every entry of both connection tables.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn forget_flows(&mut self) -> Result<()> {
        let mut four = self.conns4()?;
        for key in four.keys().collect::<Result<Vec<_>, _>>()? {
            four.remove(&key)?;
        }
        let mut six = self.conns6()?;
        for key in six.keys().collect::<Result<Vec<_>, _>>()? {
            six.remove(&key)?;
        }
        Ok(())
    }

    /// Makes the entry of a direction older, all its times by that many seconds.
    ///
    /// # Errors
    /// When there is none.
    pub fn age(&mut self, ends: &Ends, seconds: u32) -> Result<()> {
        self.change(ends, |rest| {
            for at in [8, 12] {
                let time = u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
                rest[at..at + 4].copy_from_slice(&time.saturating_sub(seconds).to_ne_bytes());
            }
        })
    }

    /// Makes the entry of a direction as if its last packet had come so many seconds after its first.
    ///
    /// # Errors
    /// When there is none.
    pub fn lengthen(&mut self, ends: &Ends, seconds: u32) -> Result<()> {
        self.change(ends, |rest| {
            let last = u32::from_ne_bytes([rest[12], rest[13], rest[14], rest[15]]);
            rest[8..12].copy_from_slice(&last.saturating_sub(seconds).to_ne_bytes());
        })
    }

    /// Takes the client's device out of the entry of a direction.
    ///
    /// # Errors
    /// When there is none.
    pub fn forget_device(&mut self, ends: &Ends) -> Result<()> {
        self.change(ends, |rest| rest[16..26].fill(0))?;
        self.advance_epoch()
    }

    /// Changes what follows the rewrite in an entry.
    fn change(&mut self, ends: &Ends, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let key = key(ends);
        let mut value = self.value(&key).context("no entry")?;
        let address = if ends.src.is_ipv6() { SIX.0 } else { FOUR.0 };
        change(&mut value[2 * address + 8..]);
        if ends.src.is_ipv6() {
            let (key, value): ([u8; SIX.1], [u8; SIX.2]) = sized(&key, &value)?;
            self.conns6()?.insert(key, value, 0)?;
        } else {
            let (key, value): ([u8; FOUR.1], [u8; FOUR.2]) = sized(&key, &value)?;
            self.conns4()?.insert(key, value, 0)?;
        }
        Ok(())
    }

    fn value(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        if key.len() == SIX.1 {
            let key = key.try_into().ok()?;
            self.conns6().ok()?.get(&key, 0).ok().map(|value| value.to_vec())
        } else {
            let key = key.try_into().ok()?;
            self.conns4().ok()?.get(&key, 0).ok().map(|value| value.to_vec())
        }
    }

    fn conns4(&mut self) -> Result<HashMap<&mut MapData, [u8; FOUR.1], [u8; FOUR.2]>> {
        Ok(self.ebpf.map_mut("CONNS4").context("map CONNS4")?.try_into()?)
    }

    fn conns6(&mut self) -> Result<HashMap<&mut MapData, [u8; SIX.1], [u8; SIX.2]>> {
        Ok(self.ebpf.map_mut("CONNS6").context("map CONNS6")?.try_into()?)
    }
}
