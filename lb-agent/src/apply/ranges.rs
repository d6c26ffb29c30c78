//! Rows of address ranges; Service ranges: addresses that belong to Services or to nobody (S-23).

use std::net::{IpAddr, Ipv6Addr};

use lb_common::address::{Address, Ip6};
use lb_common::layout::{Control, Table};

use super::{Applier, ApplyError};
use crate::dataplane::memory::{StoreError, TableMemory};
use crate::model::Cidr;

/// Address and mask, two words each.
pub(super) type Row = [u64; 4];

impl<M: TableMemory> Applier<M> {
    /// Sets the ranges (address and prefix length) that Service addresses are taken from.
    ///
    /// # Errors
    /// When there are too many, a prefix is too long, or a store failed.
    pub fn set_service_ranges(&mut self, ranges: &[(IpAddr, u8)]) -> Result<(), ApplyError> {
        const MAX: u32 = Control::MAX_SERVICE_RANGES;
        let rows: Option<Vec<Row>> =
            ranges.iter().map(|(address, prefix)| Cidr::new(*address, *prefix).map(row)).collect();
        let Some(rows) = rows.filter(|rows| rows.len() <= MAX as usize) else {
            return Err(ApplyError::InvalidRanges { max: MAX });
        };
        let memory = &self.writer.memory;
        let used = Control::ServiceRanges as u32;
        let count = memory.load(Table::Control, used, 0);
        let holds = |(index, row): (usize, &Row)| load(memory, Table::ServiceRanges, index as u32) == *row;
        let same = rows.iter().enumerate().take_while(|row| holds(*row)).count().min(count as usize);
        if same == rows.len() && same as u64 == count {
            return Ok(());
        }
        if (same as u64) < count {
            // Rows are not changed under a reader: first nobody reads them any more.
            memory.store(Table::Control, used, 0, same as u64)?;
            if same < rows.len() {
                self.writer.settle();
            }
        }
        let memory = &self.writer.memory;
        for (index, row) in rows.iter().enumerate().skip(same) {
            for (word, value) in row.iter().enumerate() {
                memory.store(Table::ServiceRanges, index as u32, word, *value)?;
            }
        }
        memory.store(Table::Control, used, 0, rows.len() as u64)?;
        self.epoch_due = true;
        Ok(self.advance_epoch()?)
    }
}

/// Address and mask as the programs compare them; IPv4 as IPv4-mapped addresses.
pub(super) fn row(range: Cidr) -> Row {
    let prefix = u32::from(range.prefix());
    let (bits, length) = match range.address() {
        IpAddr::V4(address) => (address.to_ipv6_mapped().to_bits(), prefix + 96),
        IpAddr::V6(address) => (address.to_bits(), prefix),
    };
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    let (address, mask) = (Ip6::from(Ipv6Addr::from(bits & mask)), Ip6::from(Ipv6Addr::from(mask)));
    [address.first(), address.last(), mask.first(), mask.last()]
}

/// The range in a row; `None` for a row that holds none.
pub(super) fn range(row: Row) -> Option<Cidr> {
    let bits = |first: u64, last: u64| {
        let IpAddr::V6(address) = Ip6::from_raw(first, last).to_ip() else { return 0 };
        address.to_bits()
    };
    let (address, mask) = (Ipv6Addr::from_bits(bits(row[0], row[1])), bits(row[2], row[3]));
    let length = mask.leading_ones();
    if mask.checked_shl(length).unwrap_or(0) != 0 {
        return None;
    }
    match (address.to_ipv4_mapped(), length.checked_sub(96)) {
        (Some(address), Some(length)) => Cidr::new(address.into(), length as u8),
        _ => Cidr::new(address.into(), length as u8),
    }
}

/// The row at an index.
pub(super) fn load(memory: &impl TableMemory, table: Table, index: u32) -> Row {
    [0, 1, 2, 3].map(|word| memory.load(table, index, word))
}

/// Writes a row that nobody reads yet.
pub(super) fn write(
    memory: &impl TableMemory,
    table: Table,
    index: u32,
    range: Cidr,
) -> Result<(), StoreError> {
    for (word, value) in row(range).into_iter().enumerate() {
        if memory.load(table, index, word) != value {
            memory.store(table, index, word, value)?;
        }
    }
    Ok(())
}
