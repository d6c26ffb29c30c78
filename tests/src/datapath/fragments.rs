//! The tables of fragments (S-72): what the first ones said.

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, MapData};

use super::Datapath;

/// Bytes of a key by family, and of a value, which begins with the second in which the first fragment came.
const FOUR: usize = 16;
const SIX: usize = 40;
const VALUE: usize = 12;

fn older(mut value: [u8; VALUE], seconds: u32) -> [u8; VALUE] {
    let seen = u32::from_ne_bytes([value[0], value[1], value[2], value[3]]);
    value[..4].copy_from_slice(&seen.saturating_sub(seconds).to_ne_bytes());
    value
}

impl Datapath {
    /// Forgets every first fragment.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn forget_fragments(&mut self) -> Result<()> {
        let mut four = self.fragments4()?;
        for key in four.keys().collect::<Result<Vec<_>, _>>()? {
            four.remove(&key)?;
        }
        let mut six = self.fragments6()?;
        for key in six.keys().collect::<Result<Vec<_>, _>>()? {
            six.remove(&key)?;
        }
        Ok(())
    }

    /// Makes every first fragment older.
    ///
    /// # Errors
    /// When a table cannot be read or written.
    pub fn age_fragments(&mut self, seconds: u32) -> Result<()> {
        let mut four = self.fragments4()?;
        for item in four.iter().collect::<Result<Vec<_>, _>>()? {
            four.insert(item.0, older(item.1, seconds), 0)?;
        }
        let mut six = self.fragments6()?;
        for item in six.iter().collect::<Result<Vec<_>, _>>()? {
            six.insert(item.0, older(item.1, seconds), 0)?;
        }
        Ok(())
    }

    fn fragments4(&mut self) -> Result<HashMap<&mut MapData, [u8; FOUR], [u8; VALUE]>> {
        Ok(self.ebpf.map_mut("FRAGMENTS4").context("map FRAGMENTS4")?.try_into()?)
    }

    fn fragments6(&mut self) -> Result<HashMap<&mut MapData, [u8; SIX], [u8; VALUE]>> {
        Ok(self.ebpf.map_mut("FRAGMENTS6").context("map FRAGMENTS6")?.try_into()?)
    }
}
