//! What programs in the kernel were loaded with: their load-time constants, read back from their read-only data.
//!
//! The agent that loaded them may be gone, and nobody remembers its flags. The programs do.

use std::io;
use std::os::fd::AsFd;

use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

use super::error::{Error, Result};
use super::sys::{self, ProgramInfo};

/// The section that constants lie in, and the name of the map that it becomes.
const SECTION: &str = ".rodata";

/// Values of load-time constants, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Constants {
    values: Vec<(String, Vec<u8>)>,
}

impl Constants {
    /// The constants of a program in the kernel, which was loaded from `object` (another version's are found, too, as long as
    /// their places are the same; compare the tags). `None` when it has no read-only data of this size.
    ///
    /// # Errors
    /// [`Error::Bpf`] when the kernel refuses to show its maps.
    pub(super) fn of_program(object: &[u8], program: &ProgramInfo) -> Result<Option<Self>> {
        let failed = |source| Error::bpf("reading what a program was loaded with", source);
        for id in &program.maps {
            let map = match sys::map_by_id(*id) {
                Ok(map) => map,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            if sys::map_name(map.as_fd()).map_err(failed)? != SECTION {
                continue;
            }
            let size = sys::map_info(map.as_fd()).map_err(failed)?.value_size as usize;
            let mut bytes = vec![0; size];
            sys::lookup(map.as_fd(), &0u32.to_ne_bytes(), &mut bytes).map_err(failed)?;
            return Ok(of_bytes(object, &bytes));
        }
        Ok(None)
    }

    /// A constant of 32 bits; `None` when there is none of that name.
    pub fn word(&self, name: &str) -> Option<u32> {
        self.bytes(name).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes)
    }

    /// A constant of 64 bits; `None` when there is none of that name.
    pub fn double_word(&self, name: &str) -> Option<u64> {
        self.bytes(name).and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes)
    }

    /// Every constant with its name.
    pub(super) fn values(&self) -> &[(String, Vec<u8>)] {
        &self.values
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.values.iter().find(|(found, _)| found == name).map(|(_, bytes)| &**bytes)
    }
}

/// Cuts the section's `bytes` up by the symbols of the object: those that other objects may set, which are the constants.
fn of_bytes(object: &[u8], bytes: &[u8]) -> Option<Constants> {
    let file = ElfFile64::<object::Endianness>::parse(object).ok()?;
    let section = file.section_by_name(SECTION)?;
    if section.size() != bytes.len() as u64 {
        return None;
    }
    let constants = file.symbols().filter(|symbol| {
        symbol.section_index() == Some(section.index())
            && symbol.kind() == SymbolKind::Data
            && symbol.is_global()
    });
    let value = |symbol: object::read::elf::ElfSymbol64<'_, '_>| {
        let from = symbol.address() as usize;
        let value = bytes.get(from..from.checked_add(symbol.size() as usize)?)?;
        Some((symbol.name().ok()?.to_owned(), value.to_vec()))
    };
    Some(Constants { values: constants.filter_map(value).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_found_by_name_where_the_object_says_they_are() {
        let Ok(object) = super::super::object::bytes(None) else { return };
        let file = ElfFile64::<object::Endianness>::parse(&*object).unwrap();
        let mut data = file.section_by_name(SECTION).unwrap().data().unwrap().to_vec();
        let symbol = file.symbol_by_name("MASQUERADE_PORT_FIRST").unwrap();
        let at = symbol.address() as usize;
        data[at..at + 4].copy_from_slice(&4711u32.to_ne_bytes());
        let constants = of_bytes(&object, &data).unwrap();
        assert_eq!(constants.word("MASQUERADE_PORT_FIRST"), Some(4711));
        assert_eq!(constants.word("FORWARDING"), Some(0));
        assert_eq!(constants.double_word("NETNS_COOKIE"), Some(0));
        assert_eq!(constants.word("NOBODY"), None);
        assert_eq!(of_bytes(&object, &data[1..]), None, "another version's");
    }
}
