//! How long the path of a packet is, or that of a socket: instructions and helper calls, counted without a clock.
//!
//! The kernel does not say how many instructions a packet takes, and a clock says something else each time. So the
//! program is run a second time, instruction by instruction, over copies of what the loaded maps hold: only as much of
//! the machine is there as the path of an established flow or of a stranger needs, and anything else is an error: a look-up in
//! a hash table, for one. What comes out is compared
//! with what the kernel's own run made of the packet.

mod machine;

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, PerCpuArray};
use aya::{Ebpf, Pod};
use aya_obj::Object;
use aya_obj::generated::bpf_insn;
use lb_common::layout::{BackendStat, Bucket4, Bucket6, Forwarding, SeenPorts, ServiceStat};

use self::machine::{Helpers, Memory};
use super::wire::Device;
use super::{Datapath, Outcome, Program, Verdict, constants, object_path};

/// Length of a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Length {
    /// Instructions of the program, as compiled.
    pub instructions: u32,
    /// Look-ups in arrays, which the kernel turns into a few instructions each.
    pub rows: u32,
    /// Helpers called, in their order.
    pub helpers: Vec<&'static str>,
}

/// The programs of an object, with the constants they are loaded with.
pub struct Paths {
    object: Object,
    maps: Vec<String>,
}

impl Paths {
    /// Reads the object that [`Datapath`] loads.
    ///
    /// # Errors
    /// When it cannot be read or linked.
    pub fn read(forwarding: Forwarding) -> Result<Self> {
        let path = object_path();
        let bytes = std::fs::read(&path)
            .with_context(|| format!("{}: run `cargo xtask build-ebpf` first", path.display()))?;
        let mut object = Object::parse(&bytes)?;
        let constants = constants(forwarding, super::MASQUERADE_PORTS);
        let named = constants.iter().map(|(name, value)| (*name, (value.as_slice(), true)));
        object.patch_map_data(named.collect())?;
        let mut maps: Vec<String> = object.maps.keys().cloned().collect();
        maps.sort_unstable();
        let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let content = object.maps.clone();
        let numbered = maps.iter().zip(0..).map(|(name, number)| (name.as_str(), number, &content[name]));
        object.relocate_maps(numbered, &sections)?;
        object.relocate_calls(&sections)?;
        Ok(Self { object, maps })
    }

    /// Instructions of a program as compiled, with the functions that it calls.
    ///
    /// # Errors
    /// When the object lacks it.
    pub fn compiled(&self, program: Program) -> Result<u32> {
        let found = self.object.programs.get(program.name()).context("program missing in the object")?;
        Ok(self.object.functions[&found.function_key()].instructions.len() as u32)
    }

    /// Runs a program on a packet, over what the maps of `datapath` hold, as a packet that came in at its own device on
    /// this CPU. The caller keeps the thread on its CPU ([`super::pin`]).
    ///
    /// # Errors
    /// When the packet does not take the path of an established flow, or one that is none of our business.
    pub fn measure(
        &self,
        datapath: &mut Datapath,
        program: Program,
        packet: &[u8],
    ) -> Result<(Outcome, Length)> {
        let mut memory = Memory::default();
        let start = memory.add(packet.to_vec());
        let context = memory.add(match program {
            Program::FromWire => frame_context(start, packet),
            _ => context(start, packet),
        });
        let (result, length) = self.run(datapath, program.name(), &mut memory, context)?;
        let packet = memory.at(start, packet.len())?.to_vec();
        Ok((Outcome { verdict: Verdict::of(program, result as u32)?, packet }, length))
    }

    /// Runs a program at a cgroup on its context, over what the maps of `datapath` hold: what it returns, and how long that took.
    ///
    /// # Errors
    /// When the program does more than to see that the socket is none of its business.
    pub fn measure_socket(
        &self,
        datapath: &mut Datapath,
        program: &str,
        context: Vec<u8>,
    ) -> Result<(u64, Length)> {
        let mut memory = Memory::default();
        let context = memory.add(context);
        self.run(datapath, program, &mut memory, context)
    }

    fn run(
        &self,
        datapath: &mut Datapath,
        program: &str,
        memory: &mut Memory,
        context: u64,
    ) -> Result<(u64, Length)> {
        let found = self.object.programs.get(program).context("program missing in the object")?;
        let code: &[bpf_insn] = &self.object.functions[&found.function_key()].instructions;
        let mut kernel = Kernel {
            paths: self,
            ebpf: datapath.ebpf(),
            length: Length::default(),
            handles: Vec::new(),
            rows: HashMap::new(),
        };
        let (result, instructions) = machine::run(code, memory, &mut kernel, context)?;
        Ok((result, Length { instructions, ..kernel.length }))
    }
}

/// `struct __sk_buff` (include/uapi/linux/bpf.h) of a packet at an address.
fn context(start: u64, packet: &[u8]) -> Vec<u8> {
    let mut context = vec![0; 192];
    let mut set =
        |offset: usize, value: u32| context[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    set(0, packet.len() as u32);
    set(16, u32::from(u16::from_ne_bytes([packet[12], packet[13]])));
    set(40, 1);
    set(76, start as u32);
    set(80, start as u32 + packet.len() as u32);
    context
}

/// `struct xdp_md` of a frame at an address.
fn frame_context(start: u64, packet: &[u8]) -> Vec<u8> {
    let (start, device) = (start as u32, Device::One.index());
    let words = [start, start + packet.len() as u32, start, device, 0, 0];
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// The kernel as the path of an established flow sees it.
struct Kernel<'a> {
    paths: &'a Paths,
    ebpf: &'a mut Ebpf,
    length: Length,
    /// Addresses that stand for maps.
    handles: Vec<(u64, String)>,
    /// Addresses of the rows that were asked for.
    rows: HashMap<(String, u32), u64>,
}

impl Helpers for Kernel<'_> {
    fn map(&mut self, memory: &mut Memory, map: i32, offset: Option<i32>) -> Result<u64> {
        let name = self.paths.maps.get(map as usize).context("an unknown map")?;
        if let Some(offset) = offset {
            // A load-time constant, or what the programs know in common: nothing yet.
            let content = self.paths.object.maps[name].data().to_vec();
            return Ok(memory.add(content).wrapping_add_signed(offset.into()));
        }
        let handle = memory.add(Vec::new());
        self.handles.push((handle, name.clone()));
        Ok(handle)
    }

    fn call(&mut self, memory: &mut Memory, helper: i32, arguments: [u64; 5]) -> Result<u64> {
        let name = match helper {
            1 => {
                let (_, map) =
                    self.handles.iter().find(|(handle, _)| *handle == arguments[0]).context("no map")?;
                let key = memory.at(arguments[1], 4)?;
                let index = u32::from_le_bytes([key[0], key[1], key[2], key[3]]);
                self.length.rows += 1;
                let place = (map.clone(), index);
                if let Some(known) = self.rows.get(&place) {
                    return Ok(*known);
                }
                let row = match map.as_str() {
                    // The working memory of this CPU: what an earlier packet left there means nothing.
                    "SCRATCH4" | "SCRATCH6" => {
                        Some(vec![0; self.paths.object.maps[map].value_size() as usize])
                    }
                    _ => row(self.ebpf, map, index)?,
                };
                let address = row.map_or(0, |row| memory.add(row));
                self.rows.insert(place, address);
                return Ok(address);
            }
            // Inlined by the verifier: the CPU's number (Linux 6.10) and the jiffies.
            // SAFETY: a call without arguments.
            8 => return Ok(unsafe { libc::sched_getcpu() }.max(0) as u64),
            118 => return Ok(0),
            5 => "ktime_get_ns",
            23 => "redirect",
            40 => "csum_update",
            51 => "redirect_map",
            152 => "redirect_neigh",
            155 => "redirect_peer",
            other => bail!("helper {other}, which no established flow and no stranger needs"),
        };
        self.length.helpers.push(name);
        Ok(match helper {
            // The second second.
            5 => 1_000_000_000,
            // No sum of the device.
            40 => -22i64 as u64,
            // `XDP_REDIRECT`.
            51 => 4,
            // `TC_ACT_REDIRECT`.
            _ => 7,
        })
    }
}

/// A copy of a row of a table, as the kernel has it now.
fn row(ebpf: &mut Ebpf, map: &str, index: u32) -> Result<Option<Vec<u8>>> {
    const SERVICE: usize = ServiceStat::WORDS;
    const BACKEND: usize = BackendStat::WORDS;
    match map {
        "CONTROL" | "GENERATIONS" => array::<1>(ebpf, map, index),
        "FLOWS4" => array::<16>(ebpf, map, index),
        "FLOWS6" => array::<28>(ebpf, map, index),
        "WIRE_FLOWS4" => array::<20>(ebpf, map, index),
        "WIRE_FLOWS6" => array::<32>(ebpf, map, index),
        "FRONTENDS4" => array::<{ Bucket4::WORDS }>(ebpf, map, index),
        "FRONTENDS6" => array::<{ Bucket6::WORDS }>(ebpf, map, index),
        "SERVICE_RANGES" => array::<4>(ebpf, map, index),
        "PORTS" => array::<{ SeenPorts::PLACES / 8 }>(ebpf, map, index),
        "WIRE_STATS" => counters::<1>(ebpf, map, index),
        "SERVICE_STATS" => counters::<SERVICE>(ebpf, map, index),
        "BACKEND_STATS4" | "BACKEND_STATS6" => counters::<BACKEND>(ebpf, map, index),
        other => bail!("the table {other}, which no established flow and no stranger asks"),
    }
}

fn array<const WORDS: usize>(ebpf: &mut Ebpf, map: &str, index: u32) -> Result<Option<Vec<u8>>>
where
    [u64; WORDS]: Pod,
{
    let table = Array::<_, [u64; WORDS]>::try_from(ebpf.map(map).context("map missing in the object")?)?;
    if index >= table.len() {
        return Ok(None);
    }
    let row = table.get(&index, 0)?;
    Ok(Some(row.iter().flat_map(|word| word.to_le_bytes()).collect()))
}

fn counters<const WORDS: usize>(ebpf: &mut Ebpf, map: &str, index: u32) -> Result<Option<Vec<u8>>>
where
    [u64; WORDS]: Pod,
{
    let table =
        PerCpuArray::<_, [u64; WORDS]>::try_from(ebpf.map(map).context("map missing in the object")?)?;
    ensure!(index < table.len(), "row {index} of {map}");
    // Which CPU's does not matter: the program adds to it.
    Ok(Some(vec![0; WORDS * 8]))
}
