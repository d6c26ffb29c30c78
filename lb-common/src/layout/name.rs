//! Names of Service ports, kept beside the tables so that anyone can read what the tables mean, also when no
//! agent runs, and so that a restarted agent finds its own rows again.

use core::str;

const ROW: usize = ServiceName::WORDS * 8;

/// Identity of a Service port in a row of [`ServiceName::WORDS`] words: byte 0 is the IP protocol number, byte 1
/// the family (4 or 6), bytes 2 to 4 the lengths of namespace, name and port name, which follow from byte 8 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceName<'a> {
    /// Namespace, at most 63 bytes.
    pub namespace: &'a str,
    /// Service name, at most 63 bytes.
    pub name: &'a str,
    /// Port name, at most 63 bytes, `""` for the unnamed port.
    pub port_name: &'a str,
    /// IP protocol number.
    pub protocol: u8,
    /// True for IPv6.
    pub v6: bool,
}

impl<'a> ServiceName<'a> {
    /// Words in a row.
    pub const WORDS: usize = 26;
    /// Bytes in a row.
    pub const BYTES: usize = ROW;
    const HEADER: usize = 8;
    const MAX_PART: usize = 63;

    /// As stored; `None` when a part is longer than Kubernetes allows.
    pub fn encode(&self) -> Option<[u8; ROW]> {
        let mut row = [0; ROW];
        row[0] = self.protocol;
        row[1] = if self.v6 { 6 } else { 4 };
        let mut at = Self::HEADER;
        for (index, part) in [self.namespace, self.name, self.port_name].into_iter().enumerate() {
            if part.len() > Self::MAX_PART {
                return None;
            }
            row[2 + index] = part.len() as u8;
            row[at..at + part.len()].copy_from_slice(part.as_bytes());
            at += part.len();
        }
        Some(row)
    }

    /// From the stored bytes; `None` for a row that is empty or makes no sense.
    pub fn decode(row: &'a [u8; ROW]) -> Option<Self> {
        let v6 = match row[1] {
            4 => false,
            6 => true,
            _ => return None,
        };
        let mut at = Self::HEADER;
        let mut parts = [""; 3];
        for (index, part) in parts.iter_mut().enumerate() {
            let end = at + usize::from(row[2 + index]);
            *part = str::from_utf8(row.get(at..end)?).ok()?;
            at = end;
        }
        let [namespace, name, port_name] = parts;
        Some(Self { namespace, name, port_name, protocol: row[0], v6 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_come_back(namespace in "[a-z-]{1,63}", name in "[a-z-]{1,63}", port_name in "[a-z]{0,63}", v6: bool) {
            let name = ServiceName { namespace: &namespace, name: &name, port_name: &port_name, protocol: 6, v6 };
            let row = name.encode().unwrap();
            prop_assert_eq!(ServiceName::decode(&row), Some(name));
        }

        #[test]
        fn any_row_is_read_without_panic(row in proptest::collection::vec(any::<u8>(), ServiceName::BYTES)) {
            let row: [u8; ServiceName::BYTES] = row.try_into().unwrap();
            let _ = ServiceName::decode(&row);
        }
    }
}
