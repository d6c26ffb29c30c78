//! From an address and port to a backend: the service side of the datapath, over any storage of the tables.

use crate::layout::{Backend, Family, FrontendKey, Publish, Row, ServiceVerdict, slot_of_word};
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
}

/// What the tables say about an address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frontend {
    /// It belongs to the Service port with that index.
    Service(u32),
    /// The address belongs to a Service, the port to none (S-23).
    UnknownPort,
    /// The address lies in a Service range and belongs to no Service (S-23).
    Unallocated,
    /// None of our business.
    None,
}

/// The service index of an exact frontend key.
#[inline(always)]
pub fn find<F: Family, T: Tables>(tables: &T, key: &FrontendKey<F::Addr>) -> Option<u32> {
    let (first, second) = F::buckets(tables, key);
    match F::find_frontend(tables, first, key) {
        Some(service) => Some(service),
        None => F::find_frontend(tables, second, key),
    }
}

/// Whose an address is when [`find`] found no Service for its port.
#[inline(always)]
pub fn classify_address<F: Family, T: Tables>(tables: &T, address: F::Addr) -> Frontend {
    if find::<F, T>(tables, &FrontendKey::address(address)).is_some() {
        return Frontend::UnknownPort;
    }
    if F::in_service_ranges(tables, address) { Frontend::Unallocated } else { Frontend::None }
}

/// A chosen backend with its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice<A> {
    /// Index of the backend.
    pub index: u32,
    /// The backend.
    pub backend: Backend<A>,
}

/// Chooses a backend of a Service for a new connection (2.4): `random` is uniform over 32 bits.
///
/// # Errors
/// The reason why there is none: [`Reason::NoEndpoint`], [`Reason::NoLocalEndpoint`], or
/// [`Reason::TableInconsistent`] when the tables contradict themselves.
#[inline(always)]
pub fn choose<F: Family, T: Tables>(
    tables: &T,
    service: u32,
    random: u32,
) -> Result<Choice<F::Addr>, Reason> {
    const RANDOM: u8 = ServiceVerdict::Random as u8;
    const REJECT: u8 = ServiceVerdict::Reject as u8;
    const DROP: u8 = ServiceVerdict::Drop as u8;
    let Some(row) = tables.service(service) else { return Err(Reason::TableInconsistent) };
    let publish = Publish::decode(row.word(0));
    match publish.verdict {
        RANDOM => {}
        REJECT => return Err(Reason::NoEndpoint),
        DROP => return Err(Reason::NoLocalEndpoint),
        _ => return Err(Reason::TableInconsistent),
    }
    // Multiply and shift instead of a remainder: uniform to one part in 2^32 / count, and no division.
    let slot = publish.base.wrapping_add(((random as u64 * publish.count as u64) >> 32) as u32);
    let (word, shift) = slot_of_word(slot);
    let Some(row) = tables.slots(word) else { return Err(Reason::TableInconsistent) };
    let index = (row.word(0) >> shift) as u32;
    match F::backend(tables, index) {
        Some(backend) if index != 0 => Ok(Choice { index, backend }),
        _ => Err(Reason::TableInconsistent),
    }
}
