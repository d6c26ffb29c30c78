//! Service ranges: addresses that belong to Services or to nobody (S-23).

use std::net::{IpAddr, Ipv6Addr};

use lb_common::address::Ip6;
use lb_common::layout::{Control, Table};

use super::{Applier, ApplyError};
use crate::dataplane::memory::TableMemory;

type Row = [u64; 4];

impl<M: TableMemory> Applier<M> {
    /// Sets the ranges (address and prefix length) that Service addresses are taken from.
    ///
    /// # Errors
    /// When there are too many, a prefix is too long, or a store failed.
    pub fn set_service_ranges(&mut self, ranges: &[(IpAddr, u8)]) -> Result<(), ApplyError> {
        const MAX: u32 = Control::MAX_SERVICE_RANGES;
        let rows: Option<Vec<Row>> = ranges.iter().map(|(address, prefix)| row(*address, *prefix)).collect();
        let Some(rows) = rows.filter(|rows| rows.len() <= MAX as usize) else {
            return Err(ApplyError::InvalidRanges { max: MAX });
        };
        let memory = &self.writer.memory;
        let used = Control::ServiceRanges as u32;
        let count = memory.load(Table::Control, used, 0);
        let holds = |(index, row): (usize, &Row)| {
            (0..4).all(|word| memory.load(Table::ServiceRanges, index as u32, word) == row[word])
        };
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
fn row(address: IpAddr, prefix: u8) -> Option<Row> {
    let (bits, length, width) = match address {
        IpAddr::V4(address) => (address.to_ipv6_mapped().to_bits(), u32::from(prefix) + 96, 32),
        IpAddr::V6(address) => (address.to_bits(), u32::from(prefix), 128),
    };
    if u32::from(prefix) > width {
        return None;
    }
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    let (address, mask) = (Ip6::from(Ipv6Addr::from(bits & mask)), Ip6::from(Ipv6Addr::from(mask)));
    Some([address.first(), address.last(), mask.first(), mask.last()])
}
