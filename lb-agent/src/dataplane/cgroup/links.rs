//! Links to the cgroup, pinned as `cgroup/<program>`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use super::super::error::{Error, Result};
use super::super::load::Datapath;
use super::super::pins::{self, Pins};
use super::super::sys;
use super::mount::Cgroup;
use super::{SocketHook, program_fd};

/// A program to attach.
#[derive(Debug)]
struct Loaded {
    hook: SocketHook,
    fd: OwnedFd,
    id: u32,
}

/// Keeps the programs at their cgroup. Nothing is detached when it is dropped.
#[derive(Debug)]
pub struct SocketAttacher {
    programs: Vec<Loaded>,
    cgroup: Cgroup,
    pins: Pins,
    links: BTreeMap<SocketHook, OwnedFd>,
}

/// A hook that had lost its program and got it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketRepair(pub SocketHook);

impl SocketAttacher {
    /// For the programs of `datapath`, which has to be loaded with them.
    ///
    /// # Errors
    /// [`Error::NoProgram`] when it was loaded without.
    pub fn new(datapath: &Datapath, pins: &Pins, cgroup: Cgroup) -> Result<Self> {
        let loaded = |hook: SocketHook| {
            let ebpf = datapath.ebpf();
            let program = program_fd(&ebpf, hook)?;
            let failed = |source| Error::bpf(format!("examining the program {}", hook.program()), source);
            let id = sys::program_id(program).map_err(failed)?;
            Ok(Loaded { hook, fd: program.try_clone_to_owned().map_err(failed)?, id })
        };
        let programs = SocketHook::ALL.into_iter().map(loaded).collect::<Result<_>>()?;
        Ok(Self { programs, cgroup, pins: pins.clone(), links: BTreeMap::new() })
    }

    /// The cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Attaches the programs. Links of an earlier agent to the same cgroup are given the new programs, each in one step;
    /// links to another one go once there are links to this one.
    ///
    /// # Errors
    /// [`Error::Bpf`] or [`Error::Path`] when the kernel refuses.
    pub fn attach(&mut self) -> Result<()> {
        for program in &self.programs {
            let link = attach(&self.pins, &self.cgroup, program, self.links.remove(&program.hook))?;
            self.links.insert(program.hook, link);
        }
        Ok(())
    }

    /// Looks whether every program is where it belongs, and puts back what somebody took away.
    ///
    /// # Errors
    /// As [`SocketAttacher::attach`].
    pub fn repair(&mut self) -> Result<Vec<SocketRepair>> {
        let missing: Vec<SocketRepair> = self
            .programs
            .iter()
            .filter(|program| !self.is_attached(program))
            .map(|program| SocketRepair(program.hook))
            .collect();
        if !missing.is_empty() {
            self.attach()?;
        }
        Ok(missing)
    }

    fn is_attached(&self, program: &Loaded) -> bool {
        let Some(link) = self.links.get(&program.hook) else { return false };
        is_at(link.as_fd(), &self.cgroup, Some(program.id)) && path(&self.pins, program.hook).exists()
    }
}

fn path(pins: &Pins, hook: SocketHook) -> PathBuf {
    pins.sockets().join(hook.program())
}

/// The link of a program, pinned. `held` is the one this agent already has.
fn attach(pins: &Pins, cgroup: &Cgroup, program: &Loaded, held: Option<OwnedFd>) -> Result<OwnedFd> {
    let hook = program.hook;
    let failed = |source| {
        Error::bpf(format!("attaching {} to the cgroup {}", hook.program(), cgroup.path().display()), source)
    };
    let path = path(pins, hook);
    let pinned = match sys::open_pin(&path) {
        Ok(link) => Some(link),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(Error::path("open", &path, source)),
    };
    if let Some(link) = pinned.filter(|link| is_at(link.as_fd(), cgroup, None)) {
        sys::link_update(link.as_fd(), program.fd.as_fd()).map_err(failed)?;
        return Ok(link);
    }
    // Where just the pin was removed, the link is pinned again: the program would run twice otherwise.
    let link = match held.filter(|link| is_at(link.as_fd(), cgroup, None)) {
        Some(link) => {
            sys::link_update(link.as_fd(), program.fd.as_fd()).map_err(failed)?;
            link
        }
        None => {
            sys::cgroup_link_create(program.fd.as_fd(), cgroup.as_fd(), hook.attach_type()).map_err(failed)?
        }
    };
    pins::remove(&path)?;
    pins.create()?;
    sys::pin(link.as_fd(), &path).map_err(|source| Error::path("pin the link", &path, source))?;
    Ok(link)
}

/// True when the link leads to the cgroup, and runs that program.
fn is_at(link: BorrowedFd<'_>, cgroup: &Cgroup, program: Option<u32>) -> bool {
    matches!(
        sys::cgroup_link_info(link),
        Ok(Some(info)) if info.cgroup == cgroup.id() && program.is_none_or(|id| id == info.program)
    )
}

/// Removes the links of an agent, and thereby the programs from their cgroup. Returns how many there were.
///
/// # Errors
/// [`Error::Path`] when a pin cannot be removed.
pub fn detach_sockets(pins: &Pins) -> Result<usize> {
    let names = Pins::list(&pins.sockets())?;
    // What makes connections first, what shows them last: the order of attaching, backwards.
    let mut hooks: Vec<PathBuf> = SocketHook::ALL.iter().rev().map(|hook| path(pins, *hook)).collect();
    hooks.extend(names.iter().map(|name| pins.sockets().join(name)));
    for path in hooks {
        // What cannot be opened or detached goes with its pin.
        if let Ok(link) = sys::open_pin(&path) {
            let _ = sys::link_detach(link.as_fd());
        }
        pins::remove(&path)?;
    }
    Ok(names.len())
}
