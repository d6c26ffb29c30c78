//! Links to devices, pinned as `xdp/<interface index>-<place>`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use super::super::error::{Error, Result};
use super::super::pins::{self, Pins};
use super::super::sys;
use super::XdpPlace;

/// A device that runs the XDP program, as its pin tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpLink {
    /// Interface index.
    pub interface: u32,
    /// Where at the device.
    pub place: XdpPlace,
    /// Id of the program; `None` when the link does not hold the device any more: it is gone, or somebody detached it.
    pub program: Option<u32>,
}

/// The devices that run the XDP program of the agent with these pins, also while it does not run.
///
/// # Errors
/// [`Error::Path`] when the pins cannot be read.
pub fn xdp_links(pins: &Pins) -> Result<Vec<XdpLink>> {
    let links = Links::new(pins);
    let link = |(interface, place)| {
        let info = sys::open_pin(&links.path(interface, place)).ok();
        let info = info.and_then(|link| sys::xdp_link_info(link.as_fd()).ok().flatten());
        let program = info.filter(|info| info.interface == interface).map(|info| info.program);
        XdpLink { interface, place, program }
    };
    Ok(links.found()?.into_iter().map(link).collect())
}

/// The pinned links of one agent.
#[derive(Debug)]
pub(super) struct Links {
    pins: Pins,
    links: BTreeMap<u32, (XdpPlace, OwnedFd)>,
}

impl Links {
    pub(super) fn new(pins: &Pins) -> Self {
        Self { pins: pins.clone(), links: BTreeMap::new() }
    }

    fn path(&self, interface: u32, place: XdpPlace) -> PathBuf {
        self.pins.xdp().join(format!("{interface}-{}", place.name()))
    }

    /// Devices that this agent attached the program to.
    pub(super) fn held(&self) -> BTreeMap<u32, XdpPlace> {
        self.links.iter().map(|(interface, (place, _))| (*interface, *place)).collect()
    }

    /// Where this agent attached the program at a device.
    pub(super) fn place(&self, interface: u32) -> Option<XdpPlace> {
        self.links.get(&interface).map(|(place, _)| *place)
    }

    /// What is pinned, by whomever.
    pub(super) fn found(&self) -> Result<Vec<(u32, XdpPlace)>> {
        Ok(Pins::list(&self.pins.xdp())?.iter().filter_map(|name| parse(name)).collect())
    }

    /// Attaches the program. A link that an earlier agent left there is given the new program in one step. The inner error
    /// is what the device says.
    pub(super) fn attach(
        &mut self,
        interface: u32,
        place: XdpPlace,
        program: BorrowedFd<'_>,
    ) -> Result<io::Result<()>> {
        let path = self.path(interface, place);
        let pinned = match sys::open_pin(&path) {
            Ok(link) => Some(link),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(Error::path("open", &path, source)),
        };
        // Where just the pin was removed, the link is pinned again: the device takes no second one.
        let held = self.links.remove(&interface).filter(|(at, _)| *at == place).map(|(_, link)| link);
        let was_pinned = pinned.as_ref().is_some_and(|link| is_at(link.as_fd(), interface, None));
        let link = pinned.into_iter().chain(held).find(|link| is_at(link.as_fd(), interface, None));
        let link = match link {
            Some(link) => match sys::link_update(link.as_fd(), program) {
                Ok(()) => link,
                Err(error) => return Ok(Err(error)),
            },
            None => match sys::xdp_link_create(program, interface, place == XdpPlace::Native) {
                Ok(link) => link,
                Err(error) => return Ok(Err(error)),
            },
        };
        if !was_pinned {
            pins::remove(&path)?;
            sys::pin(link.as_fd(), &path).map_err(|source| Error::path("pin the link", &path, source))?;
        }
        self.links.insert(interface, (place, link));
        Ok(Ok(()))
    }

    /// True when that program runs at the device and its pin is there.
    pub(super) fn is_attached(&self, interface: u32, program: u32) -> bool {
        let Some((place, link)) = self.links.get(&interface) else { return false };
        is_at(link.as_fd(), interface, Some(program)) && self.path(interface, *place).exists()
    }

    /// Takes the program off a device, whoever attached it. False when it was not there.
    pub(super) fn remove(&mut self, interface: u32) -> Result<bool> {
        let mut removed = false;
        if let Some((_, link)) = self.links.remove(&interface) {
            // A link whose device is gone cannot be detached, and need not be.
            let _ = sys::link_detach(link.as_fd());
            removed = true;
        }
        for place in XdpPlace::ALL {
            let path = self.path(interface, place);
            if let Ok(link) = sys::open_pin(&path) {
                let _ = sys::link_detach(link.as_fd());
                removed = true;
            }
            pins::remove(&path)?;
        }
        Ok(removed)
    }

    /// Takes the program off all devices but those that `keep` names. Returns the others.
    pub(super) fn remove_others(&mut self, keep: impl Fn(u32) -> bool) -> Result<Vec<u32>> {
        let mut others: Vec<u32> = self.found()?.into_iter().map(|(interface, _)| interface).collect();
        others.extend(self.links.keys());
        others.sort_unstable();
        others.dedup();
        others.retain(|interface| !keep(*interface));
        for interface in &others {
            self.remove(*interface)?;
        }
        Ok(others)
    }
}

/// Interface and place of a pin.
fn parse(name: &str) -> Option<(u32, XdpPlace)> {
    let (interface, place) = name.split_once('-')?;
    let place = XdpPlace::ALL.into_iter().find(|it| it.name() == place)?;
    Some((interface.parse().ok()?, place))
}

/// True when the link leads to the device, and runs that program.
fn is_at(link: BorrowedFd<'_>, interface: u32, program: Option<u32>) -> bool {
    matches!(
        sys::xdp_link_info(link),
        Ok(Some(info)) if info.interface == interface && program.is_none_or(|id| id == info.program)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_say_which_device_and_where() {
        assert_eq!(parse("2-native"), Some((2, XdpPlace::Native)));
        assert_eq!(parse("17-generic"), Some((17, XdpPlace::Generic)));
        for other in ["2", "native", "2-from_pod", "x-native"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
