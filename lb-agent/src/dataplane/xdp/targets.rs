//! Which devices take frames from the XDP program: the map `XDP_DEVICES`.
//!
//! A frame that a driver hands to a device that cannot take it is lost, so only what is known for sure is in the map.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};

use lb_common::layout::WireDevices;

use super::super::error::{Error, Result};
use super::super::sys;
use super::features::{self, Features};
use super::{XdpDevice, XdpPlace};

/// Keys that are to be in the map, with the devices that they stand for.
pub(super) type Keys = BTreeMap<u32, u32>;

/// The map, as this agent filled it.
#[derive(Debug)]
pub(super) struct Targets {
    map: OwnedFd,
    filled: Keys,
}

impl Targets {
    /// Takes the map over, whatever is in it.
    pub(super) fn new(map: OwnedFd) -> Result<Self> {
        let mut targets = Self { map, filled: Keys::new() };
        let mut key = [0; 4];
        let mut before: Option<[u8; 4]> = None;
        while sys::next_key(targets.map.as_fd(), before.as_ref().map(<[u8; 4]>::as_slice), &mut key)
            .map_err(|source| Error::bpf("reading the devices of the XDP program", source))?
        {
            let number = u32::from_ne_bytes(key);
            targets.filled.insert(number, WireDevices::interface(number));
            before = Some(key);
        }
        Ok(targets)
    }

    /// The kernel has removed a device that is gone from the map.
    pub(super) fn forget(&mut self, interface: u32) {
        self.filled.retain(|_, device| *device != interface);
    }

    /// Makes these the only keys. True when something changed.
    pub(super) fn replace(&mut self, keys: &Keys) -> Result<bool> {
        let failed = |source| Error::bpf("telling the XDP program which devices take frames", source);
        let mut changed = false;
        let gone: Vec<u32> = self.filled.keys().filter(|key| !keys.contains_key(key)).copied().collect();
        for key in gone {
            sys::delete(self.map.as_fd(), &key.to_ne_bytes()).map_err(failed)?;
            self.filled.remove(&key);
            changed = true;
        }
        for (key, interface) in keys {
            if self.filled.contains_key(key) || self.filled.len() >= WireDevices::ROWS as usize {
                continue;
            }
            // `struct bpf_devmap_val` (include/uapi/linux/bpf.h): the interface, and no program for it.
            let mut value = [0; 8];
            value[..4].copy_from_slice(&interface.to_ne_bytes());
            match sys::update(self.map.as_fd(), &key.to_ne_bytes(), &value) {
                Ok(()) => {
                    self.filled.insert(*key, *interface);
                    changed = true;
                }
                // Gone again already; that it is comes next.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(source) => return Err(failed(source)),
            }
        }
        Ok(changed)
    }
}

/// What is to be in the map. `native`: some device runs the program in its driver, or may soon.
pub(super) fn keys(
    native: bool,
    devices: &BTreeMap<u32, XdpDevice>,
    takers: &BTreeSet<u32>,
    place: impl Fn(u32) -> Option<XdpPlace>,
) -> Keys {
    // The receive path sends by the queue of the device, as everybody does: any device will do.
    let features = if native { features::read() } else { Features::Unknown };
    select(native, &features, devices, takers, place)
}

fn select(
    native: bool,
    features: &Features,
    devices: &BTreeMap<u32, XdpDevice>,
    takers: &BTreeSet<u32>,
    place: impl Fn(u32) -> Option<XdpPlace>,
) -> Keys {
    // Before Linux 6.3 nobody tells; drivers that run a program take frames of others, but of a pair only the other end
    // knows.
    let known = |interface: u32| match features {
        Features::Takers(takers) => takers.contains(&interface),
        Features::Unknown => {
            place(interface) == Some(XdpPlace::Native) && devices.get(&interface).is_some_and(|it| !it.pair)
        }
    };
    let takes = |interface: &&u32| !native || known(**interface);
    let mut keys: Keys = takers.iter().filter(takes).map(|interface| (*interface, *interface)).collect();
    for (interface, device) in devices {
        let back = match place(*interface) {
            Some(XdpPlace::Generic) => true,
            // Drivers that run programs send back what they are told to. An end of a virtual pair queues it at the other end,
            // but wakes that only if it runs a program as well (`veth_xdp_flush`, drivers/net/veth.c, Linux 6.18); what is
            // handed to it as to any other device is taken at once.
            Some(XdpPlace::Native) => !device.pair,
            None => false,
        };
        if back && takers.contains(interface) {
            keys.insert(WireDevices::back(*interface), *interface);
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: u32 = 2;
    const PAIR: u32 = 3;
    const POD: u32 = 10;
    const DEAF: u32 = 11;

    fn device(pair: bool) -> XdpDevice {
        XdpDevice { name: "eth".to_owned(), pair, mtu: 1500 }
    }

    fn all(features: &Features, native: bool, place: Option<XdpPlace>) -> Vec<u32> {
        let devices = BTreeMap::from([(CARD, device(false)), (PAIR, device(true))]);
        let takers = BTreeSet::from([CARD, PAIR, POD, DEAF]);
        select(native, features, &devices, &takers, |_| place).into_keys().collect()
    }

    #[test]
    fn the_receive_path_sends_out_of_every_device() {
        let keys = all(&Features::Unknown, false, Some(XdpPlace::Generic));
        assert_eq!(keys, [CARD, PAIR, POD, DEAF, WireDevices::back(CARD), WireDevices::back(PAIR)]);
    }

    #[test]
    fn drivers_hand_frames_to_those_that_say_they_take_them() {
        let says = Features::Takers(BTreeSet::from([CARD, POD]));
        let keys = all(&says, true, Some(XdpPlace::Native));
        assert_eq!(
            keys,
            [CARD, POD, WireDevices::back(CARD)],
            "an end of a pair whose other end is not ready"
        );
        let says = Features::Takers(BTreeSet::from([PAIR]));
        let keys = all(&says, true, Some(XdpPlace::Native));
        assert_eq!(keys, [PAIR, WireDevices::back(CARD)], "it would not wake its other end");
        let mixed = all(&Features::Takers(BTreeSet::new()), true, Some(XdpPlace::Generic));
        assert_eq!(mixed, [WireDevices::back(CARD), WireDevices::back(PAIR)], "while one runs in its driver");
    }

    #[test]
    fn where_nobody_tells_frames_go_to_cards_that_run_the_program_in_their_driver() {
        let keys = all(&Features::Unknown, true, Some(XdpPlace::Native));
        assert_eq!(keys, [CARD, WireDevices::back(CARD)]);
        assert!(all(&Features::Unknown, true, None).is_empty(), "before the program runs there");
    }

    #[test]
    fn a_device_that_is_down_takes_nothing() {
        let devices = BTreeMap::from([(CARD, device(false))]);
        let keys = select(false, &Features::Unknown, &devices, &BTreeSet::new(), |_| Some(XdpPlace::Generic));
        assert!(keys.is_empty());
    }
}
