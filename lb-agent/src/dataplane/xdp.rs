//! The program at the drivers of network devices (XDP): attached so that it outlives the agent, kept there, and told which
//! devices can take frames.

mod features;
mod links;
mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;

use super::error::{Error, Result};
use super::load::Datapath;
use super::pins::Pins;
use super::sys;
use links::Links;
use targets::Targets;

pub use links::{XdpLink, xdp_links};

/// How long a device that refused is left alone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where network devices run the XDP program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum XdpMode {
    /// Nowhere.
    #[default]
    Off,
    /// In the driver, at devices whose driver can.
    Native,
    /// In the kernel's receive path, which every device has: slower than in the driver.
    Generic,
    /// In the driver, and where it cannot in the receive path.
    Auto,
}

impl XdpMode {
    /// Places to try, the best first.
    const fn places(self) -> &'static [XdpPlace] {
        match self {
            Self::Off => &[],
            Self::Native => &[XdpPlace::Native],
            Self::Generic => &[XdpPlace::Generic],
            Self::Auto => &[XdpPlace::Native, XdpPlace::Generic],
        }
    }
}

/// Where at a device the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpPlace {
    /// In the driver.
    Native,
    /// In the kernel's receive path.
    Generic,
}

impl XdpPlace {
    /// Every place.
    pub const ALL: [Self; 2] = [Self::Native, Self::Generic];

    /// The word for it in flags, names of pins, and what is told.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// A network device that is to run the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpDevice {
    /// Its name.
    pub name: String,
    /// An end of a virtual Ethernet pair, which depends on what the other end is prepared for.
    pub pair: bool,
    /// Its MTU in bytes, which decides about what drivers take.
    pub mtu: u32,
}

/// What happened at a device.
#[derive(Debug)]
pub enum XdpNews {
    /// The program runs there now. With the reason why it does not run in the driver, where it should.
    Attached(String, XdpPlace, Option<Error>),
    /// The program was missing and is back.
    Repaired(String, XdpPlace),
    /// The program is gone from the interface, as wanted.
    Detached(u32),
    /// The device does without; it is tried again later.
    Refused(String, Error),
    /// No device has it: the kernel refused the program itself.
    NoProgram(Error),
}

/// What [`XdpAttacher::keep`] did.
#[derive(Debug, Default)]
pub struct XdpKept {
    /// What happened, in order.
    pub news: Vec<XdpNews>,
    /// Other devices take frames than before: what the programs remember of ways is out of date.
    pub ways_changed: bool,
}

#[derive(Debug)]
struct Program {
    fd: OwnedFd,
    id: u32,
    targets: Targets,
}

/// A device that refused: when, and what it was then.
#[derive(Debug)]
struct Refusal {
    at: Instant,
    device: XdpDevice,
}

impl Refusal {
    fn holds(&self, device: &XdpDevice) -> bool {
        self.at.elapsed() < PATIENCE && self.device == *device
    }
}

/// Keeps the program at the devices it is told of. Nothing is detached when it is dropped.
#[derive(Debug)]
pub struct XdpAttacher {
    datapath: Arc<Datapath>,
    links: Links,
    mode: XdpMode,
    program: Option<Program>,
    /// When the kernel refused the program.
    no_program: Option<Instant>,
    refused: BTreeMap<u32, Refusal>,
    /// Drivers that refused in this mode: not asked again.
    not_native: BTreeSet<u32>,
}

impl XdpAttacher {
    /// For the program of `datapath`. Nothing is loaded or attached yet.
    pub fn new(datapath: Arc<Datapath>, pins: &Pins) -> Self {
        Self {
            datapath,
            links: Links::new(pins),
            mode: XdpMode::Off,
            program: None,
            no_program: None,
            refused: BTreeMap::new(),
            not_native: BTreeSet::new(),
        }
    }

    /// Says where the program is to run; [`XdpAttacher::keep`] sees to it.
    pub fn set_mode(&mut self, mode: XdpMode) {
        self.mode = mode;
        self.no_program = None;
        self.refused.clear();
        self.not_native.clear();
    }

    /// Where the program is to run.
    pub fn mode(&self) -> XdpMode {
        self.mode
    }

    /// Devices that run the program, by interface index.
    pub fn attached(&self) -> BTreeMap<u32, XdpPlace> {
        self.links.held()
    }

    /// Forgets a device that is gone.
    ///
    /// # Errors
    /// [`Error::Path`] when a pin cannot be removed.
    pub fn forget(&mut self, interface: u32) -> Result<()> {
        self.refused.remove(&interface);
        self.not_native.remove(&interface);
        if let Some(program) = &mut self.program {
            program.targets.forget(interface);
        }
        self.links.remove(interface).map(drop)
    }

    /// Brings every device to where it should be: attaches the program to `devices`, puts back what somebody took away,
    /// takes it off all others, and tells the program that frames may go to those of `takers` (interface indices of network
    /// devices and pods' devices that are up) that can take them. Cheap when there is nothing to do.
    ///
    /// # Errors
    /// Pins or the map of devices cannot be read or written. What single devices refuse is among the news.
    pub fn keep(&mut self, devices: &BTreeMap<u32, XdpDevice>, takers: &BTreeSet<u32>) -> Result<XdpKept> {
        let mut kept = XdpKept::default();
        if self.mode == XdpMode::Off {
            self.detach_others(|_| false, &mut kept)?;
            self.program = None;
            return Ok(kept);
        }
        if !self.load(&mut kept) {
            self.detach_others(|_| false, &mut kept)?;
            return Ok(kept);
        }
        self.detach_others(|interface| devices.contains_key(&interface), &mut kept)?;
        self.detach_misplaced(&mut kept)?;
        // The program is to know where frames may go before it meets the first one.
        kept.ways_changed |= self.tell_targets(devices, takers)?;
        let attached = kept.news.len();
        for (interface, device) in devices {
            self.attach(*interface, device, &mut kept.news)?;
        }
        // A driver may take frames of others only once it runs a program itself.
        if kept.news.len() > attached {
            kept.ways_changed |= self.tell_targets(devices, takers)?;
        }
        Ok(kept)
    }

    /// Has the kernel verify the program, once.
    fn load(&mut self, kept: &mut XdpKept) -> bool {
        if self.program.is_some() {
            return true;
        }
        if self.no_program.is_some_and(|at| at.elapsed() < PATIENCE) {
            return false;
        }
        let load = || {
            let fd = self.datapath.wire_program()?;
            let id = sys::program_id(fd.as_fd())
                .map_err(|source| Error::bpf("examining the XDP program", source))?;
            Ok(Program { fd, id, targets: Targets::new(self.datapath.wire_devices()?)? })
        };
        match load() {
            Ok(program) => self.program = Some(program),
            Err(error) => {
                self.no_program = Some(Instant::now());
                kept.news.push(XdpNews::NoProgram(error));
            }
        }
        self.program.is_some()
    }

    fn detach_others(&mut self, keep: impl Fn(u32) -> bool, kept: &mut XdpKept) -> Result<()> {
        let removed = self.links.remove_others(keep)?;
        kept.news.extend(removed.into_iter().map(XdpNews::Detached));
        Ok(())
    }

    /// A device runs the program in one place only: what is in a place that is not wanted goes first, and the tc programs
    /// serve in between.
    fn detach_misplaced(&mut self, kept: &mut XdpKept) -> Result<()> {
        for (interface, place) in self.links.found()? {
            let wanted = match self.mode {
                // What an earlier agent, or this one in another mode, has in the receive path may have a driver that can.
                XdpMode::Auto => place == XdpPlace::Native || self.not_native.contains(&interface),
                mode => mode.places().contains(&place),
            };
            if !wanted {
                self.links.remove(interface)?;
                kept.news.push(XdpNews::Detached(interface));
            }
        }
        Ok(())
    }

    fn tell_targets(&mut self, devices: &BTreeMap<u32, XdpDevice>, takers: &BTreeSet<u32>) -> Result<bool> {
        let native = self.mode != XdpMode::Generic
            && devices.keys().any(|interface| self.links.place(*interface) != Some(XdpPlace::Generic));
        let Some(program) = &mut self.program else { return Ok(false) };
        let keys = targets::keys(native, devices, takers, |interface| self.links.place(interface));
        program.targets.replace(&keys)
    }

    fn attach(&mut self, interface: u32, device: &XdpDevice, news: &mut Vec<XdpNews>) -> Result<()> {
        let Some(program) = &self.program else { return Ok(()) };
        let held = self.links.place(interface);
        if self.links.is_attached(interface, program.id) {
            return Ok(());
        }
        if self.refused.get(&interface).is_some_and(|refusal| refusal.holds(device)) {
            return Ok(());
        }
        let mut first = None;
        for place in self.mode.places() {
            if *place == XdpPlace::Native && self.not_native.contains(&interface) {
                continue;
            }
            match self.links.attach(interface, *place, program.fd.as_fd())? {
                Ok(()) => {
                    self.refused.remove(&interface);
                    let name = device.name.clone();
                    news.push(match held {
                        Some(_) => XdpNews::Repaired(name, *place),
                        None => XdpNews::Attached(name, *place, first),
                    });
                    return Ok(());
                }
                Err(source) => {
                    if *place == XdpPlace::Native && self.mode == XdpMode::Auto {
                        self.not_native.insert(interface);
                    }
                    first.get_or_insert(Error::Xdp { place: *place, device: device.name.clone(), source });
                }
            }
        }
        if let Some(error) = first {
            self.not_native.remove(&interface);
            self.refused.insert(interface, Refusal { at: Instant::now(), device: device.clone() });
            news.push(XdpNews::Refused(device.name.clone(), error));
        }
        Ok(())
    }
}

/// Removes the program from every device. Returns their interface indices.
///
/// # Errors
/// [`Error::Path`] when a pin cannot be removed.
pub(super) fn detach_all(pins: &Pins) -> Result<Vec<u32>> {
    Links::new(pins).remove_others(|_| false)
}
