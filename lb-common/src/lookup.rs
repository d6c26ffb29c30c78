//! From an address and port to a backend: the service side of the datapath, over any storage of the tables.

use crate::address::{Address as _, Ip6};
use crate::byteorder::Be16;
use crate::layout::{
    Algorithm, Backend, Class, Client, Control, Family, FrontendKey, FrontendKind, FrontendValue, Policy,
    Publish, Row, Service, ServiceVerdict, SourceRanges, slot_of_word,
};
use crate::reason::Reason;

/// Read access to the tables of the service side.
pub trait Tables {
    /// A row of any table.
    type Row: Row;

    /// Buckets of the IPv4 frontend table, minus one.
    fn frontend_mask4(&self) -> u32;
    /// Buckets of the IPv6 frontend table, minus one.
    fn frontend_mask6(&self) -> u32;
    /// A control word.
    fn control(&self, index: u32) -> Option<Self::Row>;
    /// An IPv4 frontend bucket.
    fn frontends4(&self, bucket: u32) -> Option<Self::Row>;
    /// An IPv6 frontend bucket.
    fn frontends6(&self, bucket: u32) -> Option<Self::Row>;
    /// A service row.
    fn service(&self, index: u32) -> Option<Self::Row>;
    /// A word of slots.
    fn slots(&self, word: u32) -> Option<Self::Row>;
    /// An IPv4 backend.
    fn backends4(&self, index: u32) -> Option<Self::Row>;
    /// An IPv6 backend.
    fn backends6(&self, index: u32) -> Option<Self::Row>;
    /// A Service range.
    fn service_range(&self, index: u32) -> Option<Self::Row>;
    /// A range of allowed sources.
    fn source_range(&self, index: u32) -> Option<Self::Row>;

    /// [`in_service_ranges`], for tables that have their own way to walk there.
    #[inline(always)]
    fn in_service_ranges(&self, address: Ip6) -> bool
    where
        Self: Sized,
    {
        in_service_ranges(self, address)
    }

    /// [`in_source_ranges`], as above.
    #[inline(always)]
    fn in_source_ranges(&self, ranges: SourceRanges, address: Ip6) -> bool
    where
        Self: Sized,
    {
        in_source_ranges(self, ranges, address)
    }
}

/// True when the address lies in a Service range.
#[inline(always)]
pub fn in_service_ranges<T: Tables>(tables: &T, address: Ip6) -> bool {
    let used = tables.control(Control::ServiceRanges as u32).map_or(0, |row| row.word(0)) as u32;
    let used = if used < Control::MAX_SERVICE_RANGES { used } else { Control::MAX_SERVICE_RANGES };
    in_ranges(address, used, Control::MAX_SERVICE_RANGES, |index| tables.service_range(index))
}

/// True when the address lies in one of the ranges a Service port allows.
#[inline(always)]
pub fn in_source_ranges<T: Tables>(tables: &T, ranges: SourceRanges, address: Ip6) -> bool {
    in_ranges(address, ranges.count, SourceRanges::MAX, |index| {
        tables.source_range(ranges.first.wrapping_add(index))
    })
}

/// True when one of the first `used` ranges, `most` at the utmost, has the address.
#[inline(always)]
fn in_ranges<R: Row>(address: Ip6, used: u32, most: u32, range: impl Fn(u32) -> Option<R>) -> bool {
    for index in 0..most {
        if index >= used {
            break;
        }
        let Some(row) = range(index) else { break };
        if address.first() & row.word(2) == row.word(0) && address.last() & row.word(3) == row.word(1) {
            return true;
        }
    }
    false
}

/// Whose an address is at which no Service port was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// A Service's cluster IP; the port is none of the Service's (S-23).
    UnknownPort,
    /// It lies in a Service range and belongs to no Service (S-23).
    Unallocated,
    /// None of our business.
    NotOurs,
}

/// The value of an exact frontend key, see [`FrontendValue`].
#[inline(always)]
pub fn find<F: Family, T: Tables>(tables: &T, key: &FrontendKey<F::Addr>) -> Option<u32> {
    let (first, second) = F::buckets(tables, key);
    match F::find_frontend(tables, first, key) {
        Some(value) => Some(value),
        None => F::find_frontend(tables, second, key),
    }
}

/// The Service port at an address and port: a cluster IP, external IP or VIP, or a node port at a node port address.
#[inline(always)]
pub fn frontend<F: Family, T: Tables>(
    tables: &T,
    address: F::Addr,
    port: Be16,
    protocol: u8,
) -> Option<FrontendValue> {
    if let Some(value) = find::<F, T>(tables, &FrontendKey::service(address, port, protocol)) {
        return Some(FrontendValue::decode(value));
    }
    let value = find::<F, T>(tables, &FrontendKey::node_port(port, protocol))?;
    find::<F, T>(tables, &FrontendKey::node_address(address))?;
    Some(FrontendValue::decode(value))
}

/// Whose an address is when [`frontend`] found no Service at its port.
#[inline(always)]
pub fn classify_address<F: Family, T: Tables>(tables: &T, address: F::Addr) -> Unserved {
    if find::<F, T>(tables, &FrontendKey::address(address)).is_some() {
        return Unserved::UnknownPort;
    }
    if F::in_service_ranges(tables, address) { Unserved::Unallocated } else { Unserved::NotOurs }
}

/// True when nobody in order sends to a Service with that source: no packet comes from such an address, it is the
/// destination itself (LAND), or a cluster IP, whose packets we make ourselves. For clients `outside` it is also that of the
/// node, as far as node ports are served at it: what the node itself sends does not come in at a network device.
#[inline(always)]
pub fn is_spoofed<F: Family, T: Tables>(tables: &T, src: F::Addr, dst: F::Addr, outside: bool) -> bool {
    src.is_nobody()
        || src == dst
        || !matches!(classify_address::<F, T>(tables, src), Unserved::NotOurs)
        || (outside && is_node_address::<F, T>(tables, src))
}

/// True for an address that node ports are served at (S-35).
#[inline(always)]
pub fn is_node_address<F: Family, T: Tables>(tables: &T, address: F::Addr) -> bool {
    find::<F, T>(tables, &FrontendKey::node_address(address)).is_some()
}

/// The policy of a Service port.
#[inline(always)]
pub fn policy<T: Tables>(tables: &T, service: u32) -> Policy {
    match tables.service(service) {
        Some(row) => Policy::decode(row.word(Service::POLICY)),
        None => Policy::default(),
    }
}

/// True when the source may use the frontend (S-34): source ranges hold for load balancer VIPs only, and for every
/// kind of client.
#[inline(always)]
pub fn admits<F: Family, T: Tables>(
    tables: &T,
    frontend: FrontendValue,
    policy: Policy,
    client: Client,
    source: F::Addr,
) -> bool {
    if !matches!(frontend.kind, FrontendKind::LoadBalancer) || policy.flags & Policy::SOURCE_RANGES == 0 {
        return true;
    }
    if matches!(client, Client::Host) {
        return policy.flags & Policy::HOST_ALLOWED != 0;
    }
    let Some(row) = tables.service(frontend.service) else { return false };
    let ranges = SourceRanges::decode(row.word(Service::SOURCE_RANGES));
    F::in_source_ranges(tables, ranges, source)
}

/// A chosen backend with its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice<A> {
    /// Index of the backend.
    pub index: u32,
    /// The backend.
    pub backend: Backend<A>,
}

/// Chooses a backend of a Service for a new connection of a class (2.4). `number` gives what the slot is made of, uniform over
/// 32 bits: chance, or the client's hash ([`crate::tuple::client_hash`]).
///
/// # Errors
/// The reason why there is none: [`Reason::NoEndpoint`], [`Reason::NoLocalEndpoint`], or
/// [`Reason::TableInconsistent`] when the tables contradict themselves.
#[inline(always)]
pub fn choose<F: Family, T: Tables>(
    tables: &T,
    service: u32,
    class: Class,
    number: impl FnOnce(Algorithm) -> u32,
) -> Result<Choice<F::Addr>, Reason> {
    const REJECT: u8 = ServiceVerdict::Reject as u8;
    const DROP: u8 = ServiceVerdict::Drop as u8;
    let Some(row) = tables.service(service) else { return Err(Reason::TableInconsistent) };
    let publish = Publish::decode(row.word(class as usize));
    let number = match (publish.algorithm(), publish.verdict) {
        (Some(algorithm), _) => number(algorithm),
        (None, REJECT) => return Err(Reason::NoEndpoint),
        (None, DROP) => return Err(Reason::NoLocalEndpoint),
        (None, _) => return Err(Reason::TableInconsistent),
    };
    // Multiply and shift instead of a remainder: uniform to one part in 2^32 / count, and no division.
    let slot = publish.base.wrapping_add(((number as u64 * publish.count as u64) >> 32) as u32);
    let (word, shift) = slot_of_word(slot);
    let Some(row) = tables.slots(word) else { return Err(Reason::TableInconsistent) };
    let index = (row.word(0) >> shift) as u32;
    match F::backend(tables, index) {
        Some(backend) if index != 0 => Ok(Choice { index, backend }),
        _ => Err(Reason::TableInconsistent),
    }
}
