//! The connection tables as the agent sees them: listing, counting, and expiry, which is the agent's work.

mod expiry;
mod read;
mod shares;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

use lb_common::address::{Address, Ip4, Ip6};
use lb_common::conntrack::{State, Timeouts};
use lb_common::layout::{ConnEntry, ConnFlags};
use lb_common::tuple::Tuple;

use super::error::{Error, Result};
use super::maps::Maps;
use super::shape::Map;
use super::sys;
use expiry::Judgement;
use read::ConnectionTable;

pub(super) use read::{Plain, bytes_of, value_at};
pub use shares::{Entries, Shares};

/// One flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// IP protocol number.
    pub protocol: u8,
    /// Who opened it.
    pub client: SocketAddr,
    /// What the client connected to.
    pub frontend: SocketAddr,
    /// Where it went.
    pub endpoint: SocketAddr,
    /// What the endpoint takes for the client: an address of the node, where the flow is masqueraded and has left the
    /// node already (S-30, S-33).
    pub masqueraded_as: Option<SocketAddr>,
    /// Client and endpoint are the same pod (S-31).
    pub hairpin: bool,
    /// State.
    pub state: State,
    /// Index of the Service port.
    pub service: u32,
    /// Index of the backend when it was opened.
    pub backend: u32,
    /// Seconds since its first packet.
    pub age: u32,
    /// Seconds since its last packet, as far as the table knows: the flow cache reports every few seconds.
    pub idle: u32,
}

/// Flows by protocol and state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCount {
    /// Number of flows.
    pub flows: u64,
    /// The same by state.
    pub by_state: BTreeMap<&'static str, u64>,
    /// The same by index of the Service port.
    pub by_service: HashMap<u32, u64>,
}

/// Outcome of one sweep of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// What is left.
    pub live: ConnectionCount,
    /// Flows removed because they were over.
    pub expired: u64,
    /// Answer entries removed because their forward entry was evicted.
    pub orphans: u64,
    /// What is left, in entries of the tables: a flow has two, or four where it is masqueraded.
    pub entries: Entries,
    /// Second of the monotonic clock at which it began.
    pub at: u32,
}

/// Access to both connection tables.
#[derive(Clone, Copy, Debug)]
pub struct Connections<'m> {
    maps: &'m Maps,
}

impl<'m> Connections<'m> {
    /// The tables among `maps`.
    pub fn new(maps: &'m Maps) -> Self {
        Self { maps }
    }

    fn table<A: Plain>(&self) -> ConnectionTable<'m, A> {
        let map = if A::V6 { Map::Connections6 } else { Map::Connections4 };
        ConnectionTable::new(self.maps.fd(map), self.maps.max_entries(map))
    }

    /// Every flow, in no order.
    ///
    /// # Errors
    /// [`Error::Bpf`] when a table cannot be read.
    pub fn list(&self) -> Result<Vec<Connection>> {
        let now = monotonic()?;
        let mut all = Vec::new();
        list(self.table::<Ip4>(), now, &mut all).map_err(reading)?;
        list(self.table::<Ip6>(), now, &mut all).map_err(reading)?;
        Ok(all)
    }

    /// Removes what is over from both tables. `orphans`: look for answer entries without a forward entry as well,
    /// which costs a look-up for every flow that has been silent for minutes.
    ///
    /// Blocks, and sleeps between batches so that it never takes more than a quarter of a CPU.
    ///
    /// # Errors
    /// [`Error::Bpf`] when a table cannot be read or written.
    pub fn sweep(&self, timeouts: &Timeouts, orphans: bool) -> Result<Swept> {
        let now = monotonic()?;
        let mut swept = Swept { at: now, ..Swept::default() };
        sweep(self.table::<Ip4>(), now, timeouts, orphans, &mut swept).map_err(reading)?;
        sweep(self.table::<Ip6>(), now, timeouts, orphans, &mut swept).map_err(reading)?;
        Ok(swept)
    }
}

fn monotonic() -> Result<u32> {
    sys::monotonic_seconds().map_err(|source| Error::bpf("reading the clock", source))
}

fn reading(source: io::Error) -> Error {
    Error::bpf("reading the connection table", source)
}

fn list<A: Plain>(table: ConnectionTable<'_, A>, now: u32, all: &mut Vec<Connection>) -> io::Result<()> {
    let (mut entries, mut forward) = (Vec::new(), Vec::new());
    let mut answered: HashMap<Ends, u32> = HashMap::new();
    let mut masqueraded: HashMap<Ends, SocketAddr> = HashMap::new();
    let mut reader = table.reader();
    while reader.next(&mut entries)? {
        for (key, entry) in entries.drain(..) {
            match (expiry::is_reply(&entry), expiry::is_of_source(&entry)) {
                (false, false) => forward.push((key, entry)),
                (true, false) => {
                    answered.insert(ends(&key), entry.last_seen);
                }
                (false, true) => {
                    let source = SocketAddr::new(entry.rewrite.src.to_ip(), entry.rewrite.src_port.host());
                    masqueraded.insert(ends(&key), source);
                }
                (true, true) => {}
            }
        }
    }
    all.extend(forward.into_iter().map(|(key, entry)| {
        let reply = entry.rewrite.reply(key.protocol);
        let answered = answered.get(&ends(&reply)).copied().unwrap_or(0);
        let source = masqueraded.get(&ends(&turned(&reply))).copied();
        Connection { masqueraded_as: source, ..connection(&key, &entry, answered, now) }
    }));
    Ok(())
}

/// Source, destination and protocol.
type Ends = (SocketAddr, SocketAddr, u8);

/// The tuple of the other direction, where nothing is translated: the second pair of a masqueraded flow has the key of
/// what the first pair makes of its packets.
fn turned<A: Address>(tuple: &Tuple<A>) -> Tuple<A> {
    Tuple::new(tuple.dst, tuple.src, tuple.dst_port, tuple.src_port, tuple.protocol)
}

/// A tuple as something that can be a key of a host map.
fn ends<A: Address>(tuple: &Tuple<A>) -> Ends {
    let src = SocketAddr::new(tuple.src.to_ip(), tuple.src_port.host());
    (src, SocketAddr::new(tuple.dst.to_ip(), tuple.dst_port.host()), tuple.protocol)
}

fn connection<A: Address>(key: &Tuple<A>, entry: &ConnEntry<A>, answered: u32, now: u32) -> Connection {
    let (client, frontend, protocol) = ends(key);
    Connection {
        protocol,
        client,
        frontend,
        endpoint: SocketAddr::new(entry.rewrite.dst.to_ip(), entry.rewrite.dst_port.host()),
        masqueraded_as: None,
        hairpin: entry.flags & ConnFlags::HAIRPIN != 0,
        state: expiry::state_of(entry, protocol),
        service: entry.service,
        backend: entry.backend,
        age: expiry::since(now, entry.created),
        idle: expiry::since(now, entry.last_seen.max(answered)),
    }
}

fn sweep<A: Plain>(
    table: ConnectionTable<'_, A>,
    now: u32,
    timeouts: &Timeouts,
    orphans: bool,
    swept: &mut Swept,
) -> io::Result<()> {
    let mut entries = Vec::new();
    let mut expired = Vec::new();
    let mut reader = table.reader();
    loop {
        let begun = Instant::now();
        if !reader.next(&mut entries)? {
            break;
        }
        for (key, entry) in &entries {
            let other = entry.rewrite.reply(key.protocol);
            match expiry::judge(entry, key.protocol, now, timeouts) {
                Judgement::ExpiredUnlessSeenSince(second) => {
                    // Seen at that very second is as silent as the timeout allows: over.
                    let silent = |entry: Option<ConnEntry<A>>| entry.is_none_or(|it| it.last_seen <= second);
                    // The source port of a masqueraded flow is its own for as long as the flow lives.
                    let of_source = expiry::is_of_source(entry);
                    if silent(table.get(&other)?) && (!of_source || silent(table.get(&turned(key))?)) {
                        expired.extend([*key, other]);
                        swept.expired += u64::from(!of_source);
                        continue;
                    }
                }
                Judgement::ExpiredIfAlone if orphans && table.get(&other)?.is_none() => {
                    expired.push(*key);
                    swept.orphans += 1;
                    continue;
                }
                Judgement::ExpiredIfAlone | Judgement::Keep => {}
            }
            swept.entries.entry(entry.service).or_default()[usize::from(A::V6)] += 1;
            if !expiry::is_reply(entry) && !expiry::is_of_source(entry) {
                swept.live.flows += 1;
                *swept.live.by_service.entry(entry.service).or_default() += 1;
                *swept.live.by_state.entry(expiry::state_of(entry, key.protocol).name()).or_default() += 1;
            }
        }
        table.delete(&expired)?;
        expired.clear();
        // Three times as long as the work took: a quarter of a CPU at most.
        thread::sleep(begun.elapsed() * 3);
    }
    Ok(())
}
