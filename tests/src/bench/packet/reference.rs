//! The programs that packets are measured against (`lb-ebpf/src/reference.rs`).

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, ProgramArray};
use aya::programs::{ProgramFd, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};

use super::{once, repeat};
use crate::datapath::object_path;
use crate::datapath::wire::{Device, context};

/// Words of a frame that are put back before each run; see `WIRE_FRAME` in `lb-ebpf/src/reference.rs`.
const FRAME: usize = 12;

/// Entries of its tables.
const ENTRIES: u64 = 1024;
/// Runs that a figure of single runs is the median of.
const SINGLE: usize = 2000;

/// The loaded programs.
pub(super) struct Reference {
    ebpf: Ebpf,
    packet: Vec<u8>,
}

/// Nanoseconds of the empty program, and of a reference without those.
pub(super) struct Base {
    pub(super) empty: f64,
    pub(super) reference: f64,
}

fn path() -> PathBuf {
    object_path().with_file_name("reference.o")
}

impl Reference {
    /// Loads the programs and fills their tables.
    pub(super) fn load() -> Result<Self> {
        let path = path();
        let object = std::fs::read(&path)
            .with_context(|| format!("{}: run `cargo xtask build-ebpf` first", path.display()))?;
        let mut ebpf = EbpfLoader::new().load(&object)?;
        for name in ["empty", "hash_lookups", "lru_insert"] {
            let program: &mut SchedClassifier =
                ebpf.program_mut(name).context("program missing")?.try_into()?;
            program.load()?;
        }
        for name in ["wire_empty", "wire_again"] {
            let program: &mut Xdp = ebpf.program_mut(name).context("program missing")?.try_into()?;
            program.load()?;
        }
        for name in ["FIRST", "SECOND", "THIRD"] {
            let mut table = HashMap::<_, u64, u64>::try_from(ebpf.map_mut(name).context("map missing")?)?;
            for key in 0..ENTRIES {
                table.insert(key, (key * 7 + 13) % ENTRIES, 0)?;
            }
        }
        let mut table =
            HashMap::<_, [u64; 2], [u64; 6]>::try_from(ebpf.map_mut("CONNECTIONS").context("map missing")?)?;
        for key in 0..ENTRIES {
            table.insert([key, key], [key; 6], 0)?;
        }
        Ok(Self { ebpf, packet: vec![0; 64] })
    }

    fn program(&self, name: &str) -> Result<&SchedClassifier> {
        Ok(self.ebpf.program(name).context("program missing")?.try_into()?)
    }

    /// The empty program and the look-ups, many times on one packet.
    pub(super) fn repeated(&self, count: u32) -> Result<Base> {
        let empty = repeat(self.program("empty")?, &self.packet, None, count)?.0;
        let reference = repeat(self.program("hash_lookups")?, &self.packet, None, count)?.0 - empty;
        Ok(Base { empty, reference })
    }

    /// Nanoseconds that a program of XDP takes on a frame, which is put back before each run; and its return value. Without a program
    /// the empty one is run.
    pub(super) fn wire(
        &mut self,
        program: Option<&ProgramFd>,
        frame: &[u8],
        count: u32,
    ) -> Result<(f64, u32)> {
        let mut words = [0; FRAME];
        for (word, bytes) in words.iter_mut().zip(frame.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into()?);
        }
        ensure!(frame.len() >= FRAME * 8, "a frame of {} bytes is too short to be put back", frame.len());
        let map = self.ebpf.map_mut("WIRE_FRAME").context("map missing")?;
        Array::<_, [u64; FRAME]>::try_from(map)?.set(0, words, 0)?;
        let empty: &Xdp = self.ebpf.program("wire_empty").context("program missing")?.try_into()?;
        let empty = empty.fd()?.try_clone()?;
        let map = self.ebpf.map_mut("WIRE_NEXT").context("map missing")?;
        ProgramArray::try_from(map)?.set(0, program.unwrap_or(&empty), 0)?;
        let again: &Xdp = self.ebpf.program("wire_again").context("program missing")?.try_into()?;
        repeat(again, frame, Some(&context(Device::One, frame.len() as u32)), count)
    }

    /// The empty program and the insert, once each time.
    pub(super) fn once(&self) -> Result<Base> {
        let packets = vec![self.packet.clone(); SINGLE];
        let empty = once(self.program("empty")?, &packets)?;
        let reference = once(self.program("lru_insert")?, &packets)? - empty;
        Ok(Base { empty, reference })
    }
}
