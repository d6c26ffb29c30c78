//! A machine that runs eBPF instructions one by one (RFC 9669) and counts them: as much of it as the paths need that are
//! counted.

use anyhow::{Context as _, Result, bail, ensure};
use aya_obj::generated::bpf_insn;

/// Bits of an instruction's class.
const CLASS: u8 = 0x07;
/// The operand is a register, not the immediate.
const REGISTER: u8 = 0x08;
/// Calls of functions of the program itself have this number in their source register.
const LOCAL: u8 = 1;
/// More instructions than the path of any packet has.
const MOST: u32 = 100_000;

/// Memory at an address that the program knows.
struct Region {
    start: u64,
    bytes: Vec<u8>,
}

/// Where memory regions begin: below 4 GiB, because the context holds addresses in 32 bits.
const FIRST: u64 = 0x1000_0000;
/// Distance of regions, more than any is long.
const STRIDE: u64 = 0x10_0000;
const STACK: usize = 512;
/// Functions that may be at work at a time (`MAX_CALL_FRAMES`, include/linux/bpf_verifier.h).
const CALLS: usize = 8;

/// Memory of the program: packet, context, stack, rows of tables.
#[derive(Default)]
pub(super) struct Memory {
    regions: Vec<Region>,
}

impl Memory {
    /// Adds bytes; their address is returned.
    pub(super) fn add(&mut self, bytes: Vec<u8>) -> u64 {
        assert!((bytes.len() as u64) < STRIDE, "a region of {} bytes", bytes.len());
        let start = FIRST + self.regions.len() as u64 * STRIDE;
        self.regions.push(Region { start, bytes });
        start
    }

    /// The bytes at an address.
    ///
    /// # Errors
    /// When the program may not touch them.
    pub(super) fn at(&mut self, address: u64, len: usize) -> Result<&mut [u8]> {
        let index = address.checked_sub(FIRST).context("below all memory")? / STRIDE;
        let region = self.regions.get_mut(index as usize).context("above all memory")?;
        let offset = (address - region.start) as usize;
        region.bytes.get_mut(offset..offset + len).with_context(|| format!("{len} bytes at {address:#x}"))
    }

    fn load(&mut self, address: u64, len: usize) -> Result<u64> {
        let mut word = [0; 8];
        word[..len].copy_from_slice(self.at(address, len)?);
        Ok(u64::from_le_bytes(word))
    }

    fn store(&mut self, address: u64, len: usize, value: u64) -> Result<()> {
        self.at(address, len)?.copy_from_slice(&value.to_le_bytes()[..len]);
        Ok(())
    }
}

/// What the program calls.
pub(super) trait Helpers {
    /// The value of a call with these arguments; numbers as in `include/uapi/linux/bpf.h`.
    ///
    /// # Errors
    /// When there is no such helper here.
    fn call(&mut self, memory: &mut Memory, helper: i32, arguments: [u64; 5]) -> Result<u64>;
    /// The address that a load of a map, or of a byte in a map, gives.
    ///
    /// # Errors
    /// When there is no such map.
    fn map(&mut self, memory: &mut Memory, map: i32, offset: Option<i32>) -> Result<u64>;
}

/// Runs a program on a context: its result, and how many instructions it took.
///
/// # Errors
/// When it does what this machine does not know.
pub(super) fn run(
    code: &[bpf_insn],
    memory: &mut Memory,
    helpers: &mut impl Helpers,
    context: u64,
) -> Result<(u64, u32)> {
    let stack = memory.add(vec![0; STACK]);
    let mut registers = [0u64; 11];
    // Where callers go on, and what they find in the registers that are theirs.
    let mut callers: Vec<(usize, [u64; 5])> = Vec::new();
    registers[1] = context;
    registers[10] = stack + STACK as u64;
    let mut at = 0usize;
    for count in 1..=MOST {
        let instruction = *code.get(at).context("past the end of the program")?;
        let (dst, src) = (usize::from(instruction.dst_reg()), usize::from(instruction.src_reg()));
        let (code_byte, off, imm) = (instruction.code, i64::from(instruction.off), instruction.imm);
        let operand = if code_byte & REGISTER != 0 { registers[src] } else { i64::from(imm) as u64 };
        let size = || -> usize { [4, 2, 1, 8][usize::from(code_byte >> 3 & 3)] };
        at += 1;
        match code_byte & CLASS {
            // Arithmetic.
            7 => registers[dst] = arithmetic(code_byte, off, registers[dst], operand, imm, true)?,
            4 => registers[dst] = arithmetic(code_byte, off, registers[dst], operand, imm, false)?,
            // 64 bits at once: a number, a map, an address in a map.
            0 => {
                ensure!(code_byte == 0x18, "instruction {code_byte:#04x}");
                let next = code.get(at).context("half an instruction")?;
                at += 1;
                registers[dst] = match src {
                    0 => u64::from(imm as u32) | u64::from(next.imm as u32) << 32,
                    1 => helpers.map(memory, imm, None)?,
                    2 => helpers.map(memory, imm, Some(next.imm))?,
                    _ => bail!("a load of kind {src}"),
                };
            }
            1 => {
                ensure!(code_byte & 0xe0 == 0x60, "a load in mode {code_byte:#04x}");
                registers[dst] = memory.load(registers[src].wrapping_add_signed(off), size())?;
            }
            2 => memory.store(registers[dst].wrapping_add_signed(off), size(), i64::from(imm) as u64)?,
            3 => {
                ensure!(code_byte & 0xe0 == 0x60, "a store in mode {code_byte:#04x}");
                memory.store(registers[dst].wrapping_add_signed(off), size(), registers[src])?;
            }
            // Jumps; 6 compares the lower halves.
            class => match code_byte & 0xf0 {
                0x00 => at = at.wrapping_add_signed(if class == 5 { off as isize } else { imm as isize }),
                0x80 if instruction.src_reg() == LOCAL => {
                    ensure!(callers.len() < CALLS, "calls nested {CALLS} deep");
                    callers.push((at, std::array::from_fn(|index| registers[index + 6])));
                    registers[10] = memory.add(vec![0; STACK]) + STACK as u64;
                    at = at.wrapping_add_signed(imm as isize);
                }
                0x80 => {
                    let arguments: [u64; 5] = std::array::from_fn(|index| registers[index + 1]);
                    registers[0] = helpers.call(memory, imm, arguments)?;
                }
                0x90 => match callers.pop() {
                    Some((back, kept)) => {
                        at = back;
                        registers[6..].copy_from_slice(&kept);
                    }
                    None => return Ok((registers[0], count)),
                },
                condition => {
                    if holds(condition, registers[dst], operand, class == 5)? {
                        at = at.wrapping_add_signed(off as isize);
                    }
                }
            },
        }
    }
    bail!("more than {MOST} instructions")
}

fn arithmetic(code: u8, off: i64, dst: u64, operand: u64, imm: i32, wide: bool) -> Result<u64> {
    let (a, b) = if wide { (dst, operand) } else { (dst & 0xffff_ffff, operand & 0xffff_ffff) };
    let shift = (b as u32) & if wide { 63 } else { 31 };
    let value = match code & 0xf0 {
        0x00 => a.wrapping_add(b),
        0x10 => a.wrapping_sub(b),
        0x20 => a.wrapping_mul(b),
        0x30 => a.checked_div(b).unwrap_or(0),
        0x40 => a | b,
        0x50 => a & b,
        0x60 => a << shift,
        0x70 => a >> shift,
        0x80 => a.wrapping_neg(),
        0x90 => a.checked_rem(b).unwrap_or(a),
        0xa0 => a ^ b,
        0xb0 => match off {
            0 => b,
            8 => b as i8 as u64,
            16 => b as i16 as u64,
            32 => b as i32 as u64,
            _ => bail!("a move of {off} bits"),
        },
        0xc0 if wide => ((a as i64) >> shift) as u64,
        0xc0 => u64::from(((a as i32) >> shift) as u32),
        // Byte order: always swapped in the 64-bit class, otherwise to big-endian when the source bit is set.
        0xd0 => {
            let swap = wide || code & REGISTER != 0;
            match imm {
                16 => u64::from(if swap { (dst as u16).swap_bytes() } else { dst as u16 }),
                32 => u64::from(if swap { (dst as u32).swap_bytes() } else { dst as u32 }),
                64 if swap => return Ok(dst.swap_bytes()),
                64 => return Ok(dst),
                _ => bail!("byte order of {imm} bits"),
            }
        }
        operation => bail!("operation {operation:#04x}"),
    };
    Ok(if wide { value } else { value & 0xffff_ffff })
}

fn holds(condition: u8, a: u64, b: u64, wide: bool) -> Result<bool> {
    let (a, b, x, y) = if wide {
        (a, b, a as i64, b as i64)
    } else {
        (a & 0xffff_ffff, b & 0xffff_ffff, i64::from(a as i32), i64::from(b as i32))
    };
    Ok(match condition {
        0x10 => a == b,
        0x20 => a > b,
        0x30 => a >= b,
        0x40 => a & b != 0,
        0x50 => a != b,
        0x60 => x > y,
        0x70 => x >= y,
        0xa0 => a < b,
        0xb0 => a <= b,
        0xc0 => x < y,
        0xd0 => x <= y,
        _ => bail!("condition {condition:#04x}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct None;

    impl Helpers for None {
        fn call(&mut self, _: &mut Memory, helper: i32, arguments: [u64; 5]) -> Result<u64> {
            ensure!(helper == 7);
            Ok(arguments[0] + 1)
        }

        fn map(&mut self, _: &mut Memory, _: i32, _: Option<i32>) -> Result<u64> {
            bail!("no map")
        }
    }

    fn instruction(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> bpf_insn {
        let mut instruction =
            bpf_insn { code, _bitfield_align_1: [], _bitfield_1: Default::default(), off, imm };
        instruction.set_dst_reg(dst);
        instruction.set_src_reg(src);
        instruction
    }

    #[test]
    fn a_loop_a_call_and_memory() {
        // r6 = 3; r7 = 0; do { r7 += r6; r6 -= 1 } while (r6 != 0); *(u16 *)(r10 - 2) = r7; r1 = *(u16 *)(r10 - 2);
        // swap it to big-endian; call 7; exit.
        let code = [
            instruction(0xb7, 6, 0, 0, 3),
            instruction(0xb7, 7, 0, 0, 0),
            instruction(0x0f, 7, 6, 0, 0),
            instruction(0x17, 6, 0, 0, 1),
            instruction(0x55, 6, 0, -3, 0),
            instruction(0x6b, 10, 7, -2, 0),
            instruction(0x69, 1, 10, -2, 0),
            instruction(0xdc, 1, 0, 0, 16),
            instruction(0x85, 0, 0, 0, 7),
            instruction(0x95, 0, 0, 0, 0),
        ];
        let (result, count) = run(&code, &mut Memory::default(), &mut None, 0).unwrap();
        assert_eq!((result, count), (0x0601, 2 + 3 * 3 + 5));
    }

    #[test]
    fn a_function_has_a_stack_of_its_own_and_its_caller_goes_on() {
        // r6 = 5; *(u8 *)(r10 - 1) = 3; call f; r0 += r6; r1 = *(u8 *)(r10 - 1); r0 += r1; exit;
        // f: r6 = 1; *(u8 *)(r10 - 1) = 9; r0 = 2; exit.
        let code = [
            instruction(0xb7, 6, 0, 0, 5),
            instruction(0x72, 10, 0, -1, 3),
            instruction(0x85, 0, LOCAL, 0, 4),
            instruction(0x0f, 0, 6, 0, 0),
            instruction(0x71, 1, 10, -1, 0),
            instruction(0x0f, 0, 1, 0, 0),
            instruction(0x95, 0, 0, 0, 0),
            instruction(0xb7, 6, 0, 0, 1),
            instruction(0x72, 10, 0, -1, 9),
            instruction(0xb7, 0, 0, 0, 2),
            instruction(0x95, 0, 0, 0, 0),
        ];
        assert_eq!(run(&code, &mut Memory::default(), &mut None, 0).unwrap(), (2 + 5 + 3, 11));
    }

    #[test]
    fn what_is_not_memory_is_an_error() {
        let code = [instruction(0x79, 0, 1, 0, 0), instruction(0x95, 0, 0, 0, 0)];
        assert!(run(&code, &mut Memory::default(), &mut None, 0).is_err());
        let mut memory = Memory::default();
        let context = memory.add(vec![1; 8]);
        assert_eq!(run(&code, &mut memory, &mut None, context).unwrap(), (0x0101_0101_0101_0101, 2));
    }

    #[test]
    fn halves_are_compared_and_computed_as_halves() {
        assert!(holds(0x10, 1 << 32, 0, false).unwrap() && !holds(0x10, 1 << 32, 0, true).unwrap());
        assert!(holds(0xc0, u64::from(u32::MAX), 0, false).unwrap());
        assert_eq!(arithmetic(0x04, 0, u64::from(u32::MAX), 1, 0, false).unwrap(), 0);
        assert_eq!(arithmetic(0xc4, 0, 0x8000_0000, 4, 0, false).unwrap(), 0xf800_0000);
    }
}
