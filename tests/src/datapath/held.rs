//! Fragments that wait for their first ones.

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData};
use lb_common::layout::HeldFragment;

use super::Datapath;

/// A row of the table of held fragments; its first word says since when it is in use.
type Row = [u8; size_of::<HeldFragment>()];

impl Datapath {
    /// How many fragments wait.
    ///
    /// # Errors
    /// When the kernel refuses a read.
    pub fn held(&mut self) -> Result<usize> {
        let rows = self.held_rows()?;
        let since = (0..HeldFragment::ROWS).map(|row| Ok(since(&rows.get(&row, 0)?)));
        let since: Vec<u64> = since.collect::<Result<_>>()?;
        Ok(since.into_iter().filter(|since| *since != 0).count())
    }

    /// Lets nothing wait.
    ///
    /// # Errors
    /// When the kernel refuses a store.
    pub fn forget_held(&mut self) -> Result<()> {
        self.change_held(|_| 0)
    }

    /// Lets fragments wait for so many seconds more.
    ///
    /// # Errors
    /// When the kernel refuses a store.
    pub fn age_held(&mut self, seconds: u64) -> Result<()> {
        self.change_held(|since| since - seconds * 1_000_000_000)
    }

    fn change_held(&mut self, change: impl Fn(u64) -> u64) -> Result<()> {
        let mut rows = self.held_rows()?;
        for at in 0..HeldFragment::ROWS {
            let mut row = rows.get(&at, 0)?;
            let since = since(&row);
            if since != 0 {
                row[..8].copy_from_slice(&change(since).to_ne_bytes());
                rows.set(at, row, 0)?;
            }
        }
        Ok(())
    }

    fn held_rows(&mut self) -> Result<Array<&mut MapData, Row>> {
        Ok(self.ebpf.map_mut("HELD").context("map HELD")?.try_into()?)
    }
}

fn since(row: &Row) -> u64 {
    u64::from_ne_bytes(std::array::from_fn(|at| row[at]))
}
