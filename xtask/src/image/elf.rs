//! The two things about an ELF file that decide whether it runs on an empty base: its machine, and that it asks for no
//! dynamic loader.

use anyhow::{Context as _, Result, bail};

use super::Platform;

/// `e_machine` of ELF's header.
fn machine(platform: Platform) -> u16 {
    match platform {
        Platform::Amd64 => 62,
        Platform::Arm64 => 183,
    }
}

/// Program header type of the dynamic loader's path.
const PT_INTERP: u32 = 3;

/// Checks a program.
///
/// # Errors
/// It is no 64-bit little endian ELF program, is for another machine, or is linked dynamically.
pub(super) fn check_static(program: &[u8], platform: Platform) -> Result<()> {
    let short = "not a whole ELF file";
    if !program.starts_with(b"\x7fELF\x02\x01") {
        bail!("not a 64-bit little endian ELF file");
    }
    let found = number(program, 18, 2).context(short)? as u16;
    if found != machine(platform) {
        bail!("made for ELF machine {found}, wanted {} ({})", machine(platform), platform.architecture());
    }
    let table = number(program, 32, 8).context(short)? as usize;
    let (size, count) = (number(program, 54, 2).context(short)?, number(program, 56, 2).context(short)?);
    for index in 0..count {
        let at = table + (index * size) as usize;
        if number(program, at, 4).context(short)? as u32 == PT_INTERP {
            bail!("linked dynamically: it asks for a dynamic loader, which an empty image has not");
        }
    }
    Ok(())
}

/// A little endian number of up to 8 bytes.
fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let mut word = [0; 8];
    word[..length].copy_from_slice(bytes.get(at..at.checked_add(length)?)?);
    Some(u64::from_le_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header with one program header of that type.
    fn program(machine: u16, kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    #[test]
    fn only_static_programs_of_the_platform_pass() {
        assert!(check_static(&program(62, 1), Platform::Amd64).is_ok());
        let told = |bytes: &[u8]| check_static(bytes, Platform::Amd64).unwrap_err().to_string();
        assert!(told(&program(183, 1)).contains("machine 183"));
        assert!(told(&program(62, PT_INTERP)).contains("dynamic"));
        assert!(told(&program(62, 1)[..60]).contains("whole"));
        assert!(told(b"#!/bin/sh\n").contains("ELF"));
        // This test itself is linked dynamically on every host with a C library of its own.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let platform = if cfg!(target_arch = "x86_64") { Platform::Amd64 } else { Platform::Arm64 };
        assert_eq!(check_static(&own, platform).is_err(), cfg!(not(target_feature = "crt-static")));
    }
}
