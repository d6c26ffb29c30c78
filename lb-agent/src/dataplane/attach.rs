//! Attaching the programs to devices so that they outlive the agent, and keeping them there.

mod tc;
mod tcx;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use clap::ValueEnum;
use futures::TryStreamExt;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::Handle;

use super::cgroup;
use super::error::{Error, Result, errno};
use super::load::{Datapath, Hook, Role};
use super::pins::Pins;
use super::sys;
use super::xdp;
use tcx::Links;

pub(super) use tcx::is_supported as tcx_is_supported;

/// How programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AttachMode {
    /// TCX where the kernel has it, traffic control filters elsewhere.
    #[default]
    Auto,
    /// TCX links (kernel 6.6 and later).
    Tcx,
    /// Traffic control filters on a clsact qdisc.
    Tc,
}

/// A program to attach, by hook.
#[derive(Debug)]
struct Loaded {
    hook: Hook,
    fd: OwnedFd,
    id: u32,
}

/// Keeps the programs on the devices it is told of. Nothing is detached when it is dropped.
#[derive(Debug)]
pub struct Attacher {
    programs: Vec<Loaded>,
    links: Links,
    tcx: bool,
    handle: Handle,
    devices: BTreeMap<u32, Attached>,
}

/// A device that has the programs of its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Name of the device.
    pub name: String,
    /// What it is, which says which programs it has.
    pub role: Role,
}

/// A hook that had lost its program and got it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// Name of the device.
    pub device: String,
    /// The hook.
    pub hook: Hook,
}

impl Attacher {
    /// For the programs of `datapath`; `handle` is a netlink connection of the same network namespace.
    ///
    /// # Errors
    /// [`Error::Bpf`] when TCX is asked for and the kernel does not know it.
    pub fn new(datapath: &Datapath, pins: &Pins, mode: AttachMode, handle: Handle) -> Result<Self> {
        let mut programs = Vec::new();
        for hook in Hook::ALL {
            let program = datapath.program(hook)?;
            let failed = |source| Error::bpf(format!("examining the program {}", hook.program()), source);
            let id = sys::program_id(program.as_fd()).map_err(failed)?;
            programs.push(Loaded { hook, fd: program, id });
        }
        let supported = programs.first().is_some_and(|program| tcx::is_supported(program.fd.as_fd()));
        if mode == AttachMode::Tcx && !supported {
            let source = std::io::Error::from_raw_os_error(libc::EOPNOTSUPP);
            return Err(Error::bpf("attaching through TCX, which needs kernel 6.6 or --attach tc,", source));
        }
        let tcx = mode != AttachMode::Tc && supported;
        Ok(Self { programs, links: Links::new(pins), tcx, handle, devices: BTreeMap::new() })
    }

    /// The way programs are attached: `tcx` or `tc`.
    pub fn mode(&self) -> AttachMode {
        if self.tcx { AttachMode::Tcx } else { AttachMode::Tc }
    }

    /// True when some of these devices have filters of an earlier agent.
    ///
    /// # Errors
    /// [`Error::TrafficControl`] when the kernel does not tell.
    pub async fn finds_filters(&self, devices: impl IntoIterator<Item = u32>) -> Result<bool> {
        for interface in devices {
            let result = tc::attached(&self.handle, interface).await;
            let found = result.map_err(|error| traffic_control("listing filters", "this host", error))?;
            if !found.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Devices that have programs, by interface index.
    pub fn devices(&self) -> &BTreeMap<u32, Attached> {
        &self.devices
    }

    /// Attaches the programs of a role to a device; programs of an earlier agent are replaced without a gap. A device
    /// that had another role keeps that one's programs until the new ones are there.
    ///
    /// # Errors
    /// [`Error::Bpf`], [`Error::Path`] or [`Error::TrafficControl`] when the kernel refuses, often because the
    /// device has gone again.
    pub async fn attach(&mut self, interface: u32, name: &str, role: Role) -> Result<()> {
        for program in self.programs.iter().filter(|program| role.hooks().contains(&program.hook)) {
            if self.tcx {
                self.links.attach(interface, program.hook, program.fd.as_fd())?;
            } else {
                let result = tc::attach(&self.handle, interface, program.hook, program.fd.as_fd()).await;
                result.map_err(|error| traffic_control("attaching a filter", name, error))?;
            }
        }
        // Programs of another role are in the way. As filters, they were replaced by those of this one.
        self.links.detach_others(interface, &role.hooks())?;
        // What an agent in the other mode left would do the work twice.
        if !self.devices.contains_key(&interface) {
            if self.tcx {
                let result = tc::detach(&self.handle, interface).await;
                result.map_err(|error| traffic_control("removing old filters", name, error))?;
            } else {
                self.links.detach(interface)?;
            }
        }
        self.devices.insert(interface, Attached { name: name.to_owned(), role });
        Ok(())
    }

    /// Takes the programs off a device that still exists but is not ours any more.
    ///
    /// # Errors
    /// As [`Attacher::attach`].
    pub async fn detach(&mut self, interface: u32) -> Result<()> {
        let name = self.devices.remove(&interface).map_or_else(String::new, |device| device.name);
        self.links.detach(interface)?;
        if !self.tcx {
            let result = tc::detach(&self.handle, interface).await;
            result.map_err(|error| traffic_control("removing filters", &name, error))?;
        }
        Ok(())
    }

    /// Forgets a device that has gone, and removes its pins.
    ///
    /// # Errors
    /// [`Error::Path`] when a pin cannot be removed.
    pub fn forget(&mut self, interface: u32) -> Result<()> {
        self.devices.remove(&interface);
        self.links.detach(interface)
    }

    /// Removes pins of devices that have nothing to do with us: gone while no agent ran, or not wanted any more.
    ///
    /// # Errors
    /// [`Error::Path`] when a pin cannot be removed.
    pub fn remove_stale(&mut self) -> Result<Vec<u32>> {
        let devices = &self.devices;
        self.links.remove_others(|interface| devices.contains_key(&interface))
    }

    /// Looks whether every program is where it belongs, and puts back what somebody took away.
    ///
    /// # Errors
    /// The last error of [`Attacher::attach`]; the other devices are seen to all the same. A device that has gone is no
    /// error: whoever follows devices hears of it and calls [`Attacher::forget`].
    pub async fn repair(&mut self) -> Result<Vec<Repaired>> {
        let (mut repaired, mut failed) = (Vec::new(), None);
        // All names at once: this is done twice a second, and a node has hundreds of links.
        let pins = if self.tcx { self.links.names()? } else { Vec::new() };
        for (interface, Attached { name, role }) in self.devices.clone() {
            let mut missing = Vec::new();
            for program in self.programs.iter().filter(|program| role.hooks().contains(&program.hook)) {
                if !self.is_attached(interface, program, &pins).await {
                    missing.push(Repaired { device: name.clone(), hook: program.hook });
                }
            }
            if missing.is_empty() {
                continue;
            }
            match self.attach(interface, &name, role).await {
                Ok(()) => repaired.extend(missing),
                Err(error) if error.is_of_a_gone_device() => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(repaired), Err)
    }

    async fn is_attached(&self, interface: u32, program: &Loaded, pins: &[String]) -> bool {
        if self.tcx {
            return self.links.is_attached(interface, program.hook, program.id, pins);
        }
        tc::is_attached(&self.handle, interface, program.hook, program.id).await.unwrap_or(false)
    }
}

/// Our filters on a device: their hooks and the ids of their programs. None on a device that has gone.
pub(super) async fn filters_of(handle: &Handle, interface: u32) -> Result<Vec<(Hook, u32)>> {
    match tc::attached(handle, interface).await {
        Ok(found) => Ok(found),
        Err(error) if lists_a_gone_device(&error) => Ok(Vec::new()),
        Err(error) => Err(traffic_control("listing filters", &format!("interface {interface}"), error)),
    }
}

/// What the kernel answers who lists the filters of a device that has gone.
fn lists_a_gone_device(error: &rtnetlink::Error) -> bool {
    matches!(errno(error), Some(libc::ENODEV | libc::EINVAL))
}

fn traffic_control(action: &'static str, device: &str, error: rtnetlink::Error) -> Error {
    Error::TrafficControl { action, device: device.to_owned(), source: Box::new(error) }
}

/// What [`cleanup`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Interface indices whose links were removed.
    pub links: Vec<u32>,
    /// Interface indices of devices that ran the XDP program.
    pub xdp: Vec<u32>,
    /// Devices whose filters were removed.
    pub filters: Vec<String>,
    /// Links to a cgroup that were removed.
    pub sockets: usize,
    /// Maps that were removed.
    pub maps: Vec<String>,
}

/// Removes every link, filter and map of an agent, and the directories of its pins.
///
/// # Errors
/// The first thing that could not be removed.
pub async fn cleanup(pins: &Pins, handle: &Handle) -> Result<Cleaned> {
    // What carries packets past the others goes first.
    let mut cleaned = Cleaned { xdp: xdp::detach_all(pins)?, ..Cleaned::default() };
    cleaned.links = Links::new(pins).remove_others(|_| false)?;
    cleaned.sockets = cgroup::detach_sockets(pins)?;
    // All of them first: filters are listed next, and a netlink socket lists one thing at a time (`EBUSY`).
    let devices: std::result::Result<Vec<LinkMessage>, _> = handle.link().get().execute().try_collect().await;
    for device in devices.map_err(|error| traffic_control("listing devices", "this host", error))? {
        let name = name_of(&device);
        match tc::detach(handle, device.header.index).await {
            Ok(true) => cleaned.filters.push(name),
            Ok(false) => {}
            Err(error) if lists_a_gone_device(&error) => {}
            Err(error) => return Err(traffic_control("removing filters", &name, error)),
        }
    }
    cleaned.maps = pins.remove_maps()?;
    pins.remove_directories()?;
    Ok(cleaned)
}

fn name_of(link: &LinkMessage) -> String {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_else(|| format!("interface {}", link.header.index))
}
