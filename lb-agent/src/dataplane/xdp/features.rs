//! What devices say of XDP: the generic netlink family `netdev` (Linux 6.3; Documentation/netlink/specs/netdev.yaml).

use std::collections::BTreeSet;
use std::io;

use super::super::netlink::{self, Netlink};

/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY` and its attributes, include/uapi/linux/genetlink.h.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `NETDEV_CMD_DEV_GET` and its attributes, include/uapi/linux/netdev.h.
const GET_DEVICE: u8 = 1;
const INTERFACE: u16 = 1;
const XDP_FEATURES: u16 = 3;
/// `NETDEV_XDP_ACT_NDO_XMIT`: frames of other devices' programs are taken.
const TAKES_FRAMES: u64 = 1 << 2;
/// `struct genlmsghdr`.
const HEADER: usize = 4;

/// Which devices take frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Features {
    /// The kernel does not tell.
    Unknown,
    /// These, by interface index.
    Takers(BTreeSet<u32>),
}

/// Asks the kernel, about the devices of this network namespace.
pub(super) fn read() -> Features {
    takers().map_or(Features::Unknown, Features::Takers)
}

fn takers() -> io::Result<BTreeSet<u32>> {
    let socket = Netlink::open(libc::NETLINK_GENERIC)?;
    let mut request = vec![GET_FAMILY, 1, 0, 0];
    netlink::push_attribute(&mut request, FAMILY_NAME, b"netdev\0");
    socket.send(CONTROL, libc::NLM_F_ACK, &request)?;
    let mut family = None;
    socket.answers(|message| {
        let found = netlink::attributes(message.get(HEADER..).unwrap_or_default());
        family = found.filter(|(kind, _)| *kind == FAMILY_ID).find_map(|(_, value)| number(value));
    })?;
    let family = family.ok_or(io::ErrorKind::NotFound)? as u16;
    socket.send(family, libc::NLM_F_DUMP, &[GET_DEVICE, 1, 0, 0])?;
    let mut takers = BTreeSet::new();
    socket.answers(|message| takers.extend(taker(message.get(HEADER..).unwrap_or_default())))?;
    Ok(takers)
}

/// The device that a message is about, if it takes frames.
fn taker(attributes: &[u8]) -> Option<u32> {
    let (mut interface, mut features) = (None, None);
    for (kind, value) in netlink::attributes(attributes) {
        match kind {
            INTERFACE => interface = number(value),
            XDP_FEATURES => features = number(value),
            _ => {}
        }
    }
    let (interface, features) = (interface?, features?);
    (features & TAKES_FRAMES != 0).then_some(interface as u32)
}

/// A number of two, four or eight bytes.
fn number(value: &[u8]) -> Option<u64> {
    Some(match *value {
        [a, b] => u16::from_ne_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]).into(),
        _ => u64::from_ne_bytes(value.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_taken_by_its_flag() {
        let message = |features: u64| {
            let mut bytes = Vec::new();
            netlink::push_attribute(&mut bytes, INTERFACE, &7u32.to_ne_bytes());
            netlink::push_attribute(&mut bytes, 2, &[]);
            netlink::push_attribute(&mut bytes, XDP_FEATURES, &features.to_ne_bytes());
            bytes
        };
        assert_eq!(taker(&message(0b111)), Some(7));
        assert_eq!(taker(&message(0b011)), None);
        assert_eq!(taker(&[]), None);
    }
}
