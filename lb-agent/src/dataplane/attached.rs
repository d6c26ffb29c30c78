//! What is attached right now, found in the kernel: for tools, which may run while no agent does.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rtnetlink::Handle;
use serde::Serialize;

use super::attach::filters_of;
use super::cgroup::SocketHook;
use super::constants::Constants;
use super::error::{Error, Result};
use super::load::Hook;
use super::object;
use super::pins::Pins;
use super::sys::{self, ProgramInfo};

/// How a program is attached to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// A pinned TCX link.
    Tcx,
    /// A filter of the kernel's traffic control.
    Tc,
}

/// A program in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedProgram {
    info: ProgramInfo,
}

impl AttachedProgram {
    /// Id.
    pub fn id(&self) -> u32 {
        self.info.id
    }

    /// Hash of its instructions: the same object gives the same tag on one kernel.
    pub fn tag(&self) -> String {
        tag_text(self.info.tag)
    }

    /// Seconds of the boot clock when it was loaded.
    pub fn loaded_seconds(&self) -> u64 {
        self.info.loaded / 1_000_000_000
    }
}

/// A tag as tools print it.
pub(super) fn tag_text(tag: [u8; 8]) -> String {
    tag.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachments {
    /// Programs at devices, by interface index and hook.
    pub devices: BTreeMap<(u32, Hook), (Via, AttachedProgram)>,
    /// Programs at a cgroup.
    pub sockets: BTreeMap<SocketHook, AttachedProgram>,
    /// Names of pinned links whose device or cgroup has gone, or that somebody detached.
    pub dead_links: Vec<String>,
}

impl Attachments {
    /// Looks at pinned links, and at the filters of these devices.
    ///
    /// # Errors
    /// [`Error::Path`], [`Error::Bpf`] or [`Error::TrafficControl`] when the kernel does not tell.
    pub async fn find(
        pins: &Pins,
        handle: &Handle,
        interfaces: impl IntoIterator<Item = u32>,
    ) -> Result<Self> {
        let mut found = Self::default();
        for name in Pins::list(&pins.links())? {
            found.take_device_link(pins, name)?;
        }
        for name in Pins::list(&pins.sockets())? {
            found.take_socket_link(pins, name)?;
        }
        for interface in interfaces {
            for (hook, id) in filters_of(handle, interface).await? {
                if let Some(program) = program(id)? {
                    found.devices.insert((interface, hook), (Via::Tc, program));
                }
            }
        }
        Ok(found)
    }

    fn take_device_link(&mut self, pins: &Pins, name: String) -> Result<()> {
        let hook = Hook::ALL.into_iter().find(|hook| name.split('-').nth(1) == Some(hook.program()));
        let Some(hook) = hook else { return Ok(()) };
        let Some(link) = open(&pins.links().join(&name))? else { return Ok(()) };
        let info =
            sys::tcx_link_info(link.as_fd()).map_err(|source| Error::bpf("examining a link", source))?;
        match info.filter(|info| info.interface != 0) {
            Some(info) => {
                if let Some(program) = program(info.program)? {
                    self.devices.insert((info.interface, hook), (Via::Tcx, program));
                }
            }
            None => self.dead_links.push(name),
        }
        Ok(())
    }

    fn take_socket_link(&mut self, pins: &Pins, name: String) -> Result<()> {
        let hook = SocketHook::ALL.into_iter().find(|hook| hook.program() == name);
        let Some(hook) = hook else { return Ok(()) };
        let Some(link) = open(&pins.sockets().join(&name))? else { return Ok(()) };
        let info =
            sys::cgroup_link_info(link.as_fd()).map_err(|source| Error::bpf("examining a link", source))?;
        match info.filter(|info| info.cgroup != 0) {
            Some(info) => {
                if let Some(program) = program(info.program)? {
                    self.sockets.insert(hook, program);
                }
            }
            None => self.dead_links.push(name),
        }
        Ok(())
    }

    /// A program of a hook, wherever it is attached.
    pub fn any(&self, hook: Hook) -> Option<&AttachedProgram> {
        self.devices.iter().find(|((_, found), _)| *found == hook).map(|(_, (_, program))| program)
    }

    /// What the programs were loaded with, as far as this agent's object (or that of a file) tells where to look. `None` when
    /// nothing is attached, or it is from another version.
    ///
    /// # Errors
    /// [`Error::ReadObject`] or [`Error::NoObject`] without an object, [`Error::Bpf`] when the kernel does not tell.
    pub fn constants(&self, object: Option<&Path>) -> Result<Option<Constants>> {
        let object = object::bytes(object)?;
        // Programs at devices are replaced with every start; those at a cgroup, too, but they may be switched off.
        let programs = self.devices.values().map(|(_, program)| program).chain(self.sockets.values());
        for program in programs {
            if let Some(constants) = Constants::of_program(&object, &program.info)? {
                return Ok(Some(constants));
            }
        }
        Ok(None)
    }
}

fn open(path: &Path) -> Result<Option<OwnedFd>> {
    match sys::open_pin(path) {
        Ok(link) => Ok(Some(link)),
        // Removed since the directory was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::path("open", path, source)),
    }
}

/// The program of an id; `None` when it has gone meanwhile.
fn program(id: u32) -> Result<Option<AttachedProgram>> {
    let failed = |source| Error::bpf(format!("examining the program with id {id}"), source);
    match sys::program_by_id(id) {
        Ok(program) => {
            let info = sys::program_info(program.as_fd()).map_err(failed)?;
            Ok(Some(AttachedProgram { info }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}
