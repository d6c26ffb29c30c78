//! TCX (kernel 6.6 and later): links pinned as `links/<interface index>-<program>`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use super::super::error::{Error, Result};
use super::super::load::Hook;
use super::super::pins::{self, Pins};
use super::super::sys;

/// An interface index that no device has: device numbers count up from 1.
const NO_DEVICE: u32 = i32::MAX as u32;

/// True when the kernel knows TCX: it then looks for the device, and there is none.
pub(in super::super) fn is_supported(program: BorrowedFd<'_>) -> bool {
    sys::tcx_link_create(program, NO_DEVICE, sys::Side::Ingress)
        .is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV))
}

/// The pinned links of one agent.
#[derive(Debug)]
pub(super) struct Links {
    pins: Pins,
    links: BTreeMap<(u32, Hook), OwnedFd>,
}

impl Links {
    pub(super) fn new(pins: &Pins) -> Self {
        Self { pins: pins.clone(), links: BTreeMap::new() }
    }

    fn path(&self, interface: u32, hook: Hook) -> PathBuf {
        self.pins.links().join(name(interface, hook))
    }

    /// Names of all pins, sorted.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        Pins::list(&self.pins.links())
    }

    /// Attaches a program to a device. A link that an earlier agent left is given the new program in one step, so
    /// that no packet passes by.
    pub(super) fn attach(&mut self, interface: u32, hook: Hook, program: BorrowedFd<'_>) -> Result<()> {
        let path = self.path(interface, hook);
        let failed =
            |source| Error::bpf(format!("attaching {} to interface {interface}", hook.program()), source);
        if let Some(link) = open_attached(&path, interface)? {
            sys::link_update(link.as_fd(), program).map_err(failed)?;
            self.links.insert((interface, hook), link);
            return Ok(());
        }
        pins::remove(&path)?;
        // A device takes the same program only once: where just the pin was removed, the link is pinned again.
        let held =
            self.links.remove(&(interface, hook)).filter(|link| is_attached_to(link.as_fd(), interface));
        let link = match held {
            Some(link) => {
                sys::link_update(link.as_fd(), program).map_err(failed)?;
                link
            }
            None => sys::tcx_link_create(program, interface, hook.side()).map_err(failed)?,
        };
        self.pins.create()?;
        sys::pin(link.as_fd(), &path).map_err(|source| Error::path("pin the link", &path, source))?;
        self.links.insert((interface, hook), link);
        Ok(())
    }

    /// True when the program runs at the device and its pin is there, among all `names`.
    pub(super) fn is_attached(&self, interface: u32, hook: Hook, program_id: u32, names: &[String]) -> bool {
        let Some(link) = self.links.get(&(interface, hook)) else { return false };
        let info = sys::tcx_link_info(link.as_fd());
        let attached =
            matches!(info, Ok(Some(info)) if info.interface == interface && info.program == program_id);
        attached && names.binary_search(&name(interface, hook)).is_ok()
    }

    /// Forgets a device, and removes its pins.
    pub(super) fn detach(&mut self, interface: u32) -> Result<()> {
        self.detach_others(interface, &[])
    }

    /// Detaches all programs but those of some hooks, and removes their pins.
    pub(super) fn detach_others(&mut self, interface: u32, keep: &[Hook]) -> Result<()> {
        for hook in Hook::ALL.into_iter().filter(|hook| !keep.contains(hook)) {
            self.links.remove(&(interface, hook));
            pins::remove(&self.path(interface, hook))?;
        }
        Ok(())
    }

    /// Removes all pins but those of the devices that `keep` names.
    pub(super) fn remove_others(&mut self, keep: impl Fn(u32) -> bool) -> Result<Vec<u32>> {
        let mut removed = Vec::new();
        for name in Pins::list(&self.pins.links())? {
            let interface = name.split('-').next().and_then(|index| index.parse().ok());
            if interface.is_some_and(&keep) {
                continue;
            }
            pins::remove(&self.pins.links().join(&name))?;
            if let Some(interface) = interface {
                self.links.retain(|(index, _), _| *index != interface);
                removed.push(interface);
            }
        }
        removed.dedup();
        Ok(removed)
    }
}

fn name(interface: u32, hook: Hook) -> String {
    format!("{interface}-{}", hook.program())
}

/// The pinned link at `path` when it is attached to the device; a link whose device is gone, or that somebody
/// detached, is of no use.
fn open_attached(path: &std::path::Path, interface: u32) -> Result<Option<OwnedFd>> {
    let link = match sys::open_pin(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::path("open", path, source)),
    };
    Ok(is_attached_to(link.as_fd(), interface).then_some(link))
}

fn is_attached_to(link: BorrowedFd<'_>, interface: u32) -> bool {
    matches!(sys::tcx_link_info(link), Ok(Some(info)) if info.interface == interface)
}
