//! Loading: pinned tables adopted or made, programs specialised to them and verified.

use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::programs::{ProgramError, SchedClassifier, Xdp};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader};
use lb_common::layout::{Forwarding, HeldFragment, Table};
use lb_common::share;

use super::cgroup::{self, SocketOptions};
use super::error::{Error, Result};
use super::log;
use super::maps::{Found, Maps};
use super::pins::Pins;
use super::shape::Map;
use super::sizes::Sizes;
use super::sys::{self, Side};

/// Seconds after which a cached flow asks the tables again and thereby shows that it lives. Shorter than every
/// timeout of a connection by far.
const FLOW_REFRESH_SECONDS: u32 = 4;
/// Lines of the verifier's log that an error shows: it names the offending instruction at its end.
const VERIFIER_LINES: usize = 40;

/// A program and the place it belongs to on devices of its [`Role`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// What the pod sends, at the ingress of the host side.
    FromPod,
    /// What the pod receives, at the egress of the host side.
    ToPod,
    /// What comes in from outside the node, at the ingress of a network device.
    FromNet,
    /// What leaves the node, at the egress of a network device.
    ToNet,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 4] = [Self::ToPod, Self::FromPod, Self::ToNet, Self::FromNet];

    /// Name of the program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromNet => "from_net",
            Self::ToNet => "to_net",
        }
    }

    pub(crate) const fn side(self) -> Side {
        match self {
            Self::FromPod | Self::FromNet => Side::Ingress,
            Self::ToPod | Self::ToNet => Side::Egress,
        }
    }
}

/// What a device is to the datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The host side of a pod's device.
    Pod,
    /// A network device: leads out of the node.
    Net,
}

impl Role {
    /// The hooks of such devices, in the order of attaching: answers first, so that none meets a device that only
    /// translates requests.
    pub const fn hooks(self) -> [Hook; 2] {
        match self {
            Self::Pod => [Hook::ToPod, Hook::FromPod],
            Self::Net => [Hook::ToNet, Hook::FromNet],
        }
    }
}

/// What became of the tables of an earlier agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// There were none.
    New,
    /// They are ours to go on with; all flows stay where they are.
    Adopted,
    /// They could not be read by this agent and were replaced; why.
    Replaced(String),
}

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Object to load instead of the embedded one.
    pub object: Option<PathBuf>,
    /// Sizes of maps that have to be made.
    pub sizes: Sizes,
    /// Forwarding mode.
    pub forwarding: Forwarding,
    /// Programs that log first packets, see [`Datapath::program_log`].
    pub log: bool,
    /// Source ports of masqueraded flows: such as the node's own sockets do not choose by themselves.
    pub masquerade_ports: RangeInclusive<u16>,
    /// Programs that answer echo requests to cluster IPs with an endpoint (S-70).
    pub echo_reply: bool,
    /// How sockets are translated when they connect; `None` when the programs for that are not to be loaded.
    pub sockets: Option<SocketOptions>,
}

/// The loaded programs and their maps.
#[derive(Debug)]
pub struct Datapath {
    /// Programs that are not always needed are verified when they are.
    ebpf: Mutex<Ebpf>,
    maps: Maps,
    adoption: Adoption,
}

impl Datapath {
    /// Adopts or makes the tables below `pins` and loads the programs. Nothing is attached.
    ///
    /// # Errors
    /// Every kind of [`Error`]; tables that exist and fit are left as they were.
    pub fn load(pins: &Pins, options: &LoadOptions) -> Result<Self> {
        options.sizes.check()?;
        let object = super::object::bytes(options.object.as_deref())?;
        pins.create()?;
        sys::unlimit_locked_memory();
        let (adoption, found) = match Maps::find(pins)? {
            // Programs that run on tables which nobody can open by name any more.
            Found::Nothing if !Pins::list(&pins.links())?.is_empty() => {
                (Adoption::Replaced("somebody removed their pins".to_owned()), None)
            }
            Found::Nothing => (Adoption::New, None),
            Found::Compatible(maps) => (Adoption::Adopted, Some(maps)),
            Found::Incompatible(reason) => {
                // The programs that are attached keep the old tables alive until they are replaced.
                pins.remove_maps()?;
                (Adoption::Replaced(reason), None)
            }
        };
        let entries = |map: Map| {
            found.as_ref().map_or_else(|| map.max_entries(&options.sizes), |maps| maps.max_entries(map))
        };
        let instance = Instance { sharing: Sharing::All(pins), hooks: &Hook::ALL, given: &[] };
        let ebpf = instance.load(&object, options, entries)?;
        Ok(Self { ebpf: Mutex::new(ebpf), maps: Maps::open(pins)?, adoption })
    }

    /// What became of the tables of an earlier agent.
    pub fn adoption(&self) -> &Adoption {
        &self.adoption
    }

    /// The pinned maps.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Forwards what the programs log to the agent's own log, for as long as it is polled. To be asked for once.
    ///
    /// # Errors
    /// The programs' log cannot be read.
    pub fn program_log(&mut self) -> Result<impl Future<Output = ()> + Send + use<>> {
        log::forward(self.ebpf.get_mut().unwrap_or_else(PoisonError::into_inner))
    }

    /// The object as it is loaded.
    pub(super) fn ebpf(&self) -> MutexGuard<'_, Ebpf> {
        self.ebpf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Descriptor of a hook's program.
    pub(super) fn program(&self, hook: Hook) -> Result<OwnedFd> {
        cloned(hook.program(), program_fd(&self.ebpf(), hook)?)
    }

    /// Descriptor of the XDP program, which is verified when it is first asked for: most nodes do without.
    pub(super) fn wire_program(&self) -> Result<OwnedFd> {
        let mut ebpf = self.ebpf();
        let missing = || Error::NoProgram(FROM_WIRE);
        let program = ebpf.program_mut(FROM_WIRE).ok_or_else(missing)?;
        let program: &mut Xdp = program.try_into().map_err(|_| missing())?;
        if program.fd().is_err() {
            program.load().map_err(|error| refused(FROM_WIRE, error))?;
        }
        cloned(FROM_WIRE, program.fd().map_err(|_| missing())?.as_fd())
    }

    /// Descriptor of the map with the devices that the XDP program may hand frames to.
    pub(super) fn wire_devices(&self) -> Result<OwnedFd> {
        let ebpf = self.ebpf();
        match ebpf.map(XDP_DEVICES) {
            Some(aya::maps::Map::DevMapHash(data)) => cloned(XDP_DEVICES, data.fd().as_fd()),
            _ => Err(Error::NoProgram(FROM_WIRE)),
        }
    }
}

/// Name of the XDP program.
const FROM_WIRE: &str = "from_wire";
/// Name of its map of devices.
const XDP_DEVICES: &str = "XDP_DEVICES";

fn cloned(name: &str, fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned().map_err(|source| Error::bpf(format!("keeping {name} open"), source))
}

/// Descriptor of a hook's program.
pub(super) fn program_fd(ebpf: &Ebpf, hook: Hook) -> Result<BorrowedFd<'_>> {
    let name = hook.program();
    let program = ebpf.program(name).ok_or(Error::NoProgram(name))?;
    Ok(program.fd().map_err(|_| Error::NoProgram(name))?.as_fd())
}

/// Descriptor of an array map.
pub(super) fn map_fd<'e>(ebpf: &'e Ebpf, name: &str) -> Option<BorrowedFd<'e>> {
    match ebpf.map(name)? {
        aya::maps::Map::Array(data) => Some(data.fd().as_fd()),
        _ => None,
    }
}

/// Loads the programs with maps of their own that nobody else sees: to find out whether it can be done.
pub(super) fn load_unpinned(options: &LoadOptions) -> Result<Ebpf> {
    options.sizes.check()?;
    let object = super::object::bytes(options.object.as_deref())?;
    sys::unlimit_locked_memory();
    let entries = |map: Map| map.max_entries(&options.sizes);
    let instance = Instance { sharing: Sharing::Nothing, hooks: &Hook::ALL, given: &[] };
    instance.load(&object, options, entries)
}

/// Which pinned maps an instance of the programs takes. Of all others it makes its own, which end with it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sharing<'p> {
    /// Every one, made and pinned where missing: the programs that serve.
    All(&'p Pins),
    /// Those that programs only read ([`Map::is_read_only`]): a shadow, which decides as the programs that serve and leaves
    /// no trace.
    ReadOnly(&'p Pins),
    /// None.
    Nothing,
}

impl<'p> Sharing<'p> {
    /// Whose pin of a map is taken.
    fn pins_of(self, map: Map) -> Option<&'p Pins> {
        match self {
            Self::All(pins) => Some(pins),
            Self::ReadOnly(pins) => map.is_read_only().then_some(pins),
            Self::Nothing => None,
        }
    }
}

/// An instance of the programs to be loaded. The one place where an object becomes programs, whoever wants them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instance<'i> {
    /// The maps it has in common with others.
    pub(super) sharing: Sharing<'i>,
    /// The programs at devices that are wanted.
    pub(super) hooks: &'i [Hook],
    /// Constants by name, in place of those that follow from the options.
    pub(super) given: &'i [(String, Vec<u8>)],
}

impl Instance<'_> {
    /// Loads and verifies; maps that are made get so many `entries`.
    ///
    /// # Errors
    /// [`Error::Load`], [`Error::NoProgram`] or [`Error::Verifier`].
    pub(super) fn load(
        &self,
        object: &[u8],
        options: &LoadOptions,
        entries: impl Fn(Map) -> u32 + Copy,
    ) -> Result<Ebpf> {
        let constants = Constants::new(options, entries)?;
        let mut loader = constants.loader(self.sharing, entries);
        for (name, value) in self.given {
            loader.override_global(name, value.as_slice(), true);
        }
        let mut ebpf = loader.load(object).map_err(|error| Error::Load(Box::new(error)))?;
        for hook in self.hooks {
            verify(&mut ebpf, hook.program())?;
        }
        if options.sockets.is_some() {
            cgroup::verify(&mut ebpf)?;
        }
        Ok(ebpf)
    }
}

/// Constants that the programs are specialised with.
struct Constants {
    forwarding: u32,
    frontend_mask4: u32,
    frontend_mask6: u32,
    flow_mask: u32,
    flow_refresh: u32,
    flow_sets: u32,
    log_level: u8,
    connections: u32,
    recent: u32,
    masquerade_first: u32,
    masquerade_count: u32,
    echo_reply: u32,
    socket_namespace: u64,
    socket_pods: u32,
    socket_errors: u32,
    socket_idle: u32,
}

impl Constants {
    fn new(options: &LoadOptions, entries: impl Fn(Map) -> u32) -> Result<Self> {
        let cpus = nr_cpus().map_err(|(path, source)| Error::path("read", path.as_ref(), source))? as u32;
        let jiffies = sys::jiffies_per_second()
            .map_err(|source| Error::bpf("reading the clock's resolution", source))?;
        let sets = options.sizes.flow_cache_sets;
        let unused = SocketOptions { namespace: 0, pods: false, errors: false, idle: 0 };
        let sockets = options.sockets.unwrap_or(unused);
        Ok(Self {
            forwarding: options.forwarding as u32,
            frontend_mask4: entries(Map::Table(Table::Frontends4)) - 1,
            frontend_mask6: entries(Map::Table(Table::Frontends6)) - 1,
            log_level: if options.log { log::FIRST_PACKETS } else { log::SILENT },
            connections: entries(Map::Connections4).min(entries(Map::Connections6)),
            recent: share::ring_length(entries(Map::Connections4)),
            masquerade_first: u32::from(*options.masquerade_ports.start()),
            masquerade_count: options.masquerade_ports.len() as u32,
            echo_reply: options.echo_reply.into(),
            socket_namespace: sockets.namespace,
            socket_pods: sockets.pods.into(),
            socket_errors: sockets.errors.into(),
            socket_idle: sockets.idle,
            flow_mask: sets - 1,
            flow_refresh: jiffies * FLOW_REFRESH_SECONDS,
            flow_sets: sets.checked_mul(cpus).ok_or_else(|| {
                Error::Size(format!("--flow-cache-sets {sets} is too large for {cpus} CPUs"))
            })?,
        })
    }

    fn loader<'a>(&'a self, sharing: Sharing<'_>, entries: impl Fn(Map) -> u32) -> EbpfLoader<'a> {
        let mut loader = EbpfLoader::new();
        // The programs use no type of the running kernel; parsing its BTF would cost tens of milliseconds.
        loader
            .btf(None)
            .override_global("FORWARDING", &self.forwarding, true)
            .override_global(aya_log::LEVEL, &self.log_level, true)
            .override_global("FRONTEND_MASK4", &self.frontend_mask4, true)
            .override_global("FRONTEND_MASK6", &self.frontend_mask6, true)
            .override_global("FLOW_MASK", &self.flow_mask, true)
            .override_global("CONNECTIONS", &self.connections, true)
            .override_global("RECENT_LENGTH", &self.recent, true)
            .override_global("MASQUERADE_PORT_FIRST", &self.masquerade_first, true)
            .override_global("MASQUERADE_PORT_COUNT", &self.masquerade_count, true)
            .override_global("ECHO_REPLY", &self.echo_reply, true)
            .override_global("NETNS_COOKIE", &self.socket_namespace, true)
            .override_global("SOCKET_PODS", &self.socket_pods, true)
            .override_global("SOCKET_ERRORS", &self.socket_errors, true)
            .override_global("SOCKET_IDLE", &self.socket_idle, true)
            .override_global("FLOW_REFRESH", &self.flow_refresh, true);
        // The flow cache is private to the programs and never adopted.
        for name in ["FLOWS4", "FLOWS6", "WIRE_FLOWS4", "WIRE_FLOWS6"] {
            loader.map_max_entries(name, self.flow_sets);
        }
        // Nor are the rings of recent flows: they fill again while there is need for them.
        for name in ["RECENT4", "RECENT6"] {
            loader.map_max_entries(name, self.recent * share::RINGS);
        }
        // Nor fragments that wait for one another, for two seconds at the most.
        loader.map_max_entries("HELD", HeldFragment::ROWS).map_max_entries("HELD_LOCKS", HeldFragment::ROWS);
        for map in Map::all() {
            loader.map_max_entries(map.name(), entries(map));
            if let Some(pins) = sharing.pins_of(map) {
                loader.map_pin_path(map.name(), pins.map(map.name()));
            }
        }
        loader
    }
}

fn verify(ebpf: &mut Ebpf, name: &'static str) -> Result<()> {
    let program = ebpf.program_mut(name).ok_or(Error::NoProgram(name))?;
    let program: &mut SchedClassifier = program.try_into().map_err(|_| Error::NoProgram(name))?;
    program.load().map_err(|error| refused(name, error))
}

/// An error with the end of the verifier's words.
pub(super) fn refused(name: &'static str, error: ProgramError) -> Error {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => Error::Verifier {
            program: name,
            cause: io_error.to_string(),
            log: last_lines(&verifier_log.to_string(), VERIFIER_LINES),
        },
        other => Error::Verifier { program: name, cause: other.to_string(), log: String::new() },
    }
}

/// The last lines of a text, each with a line feed before it.
fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_matches(['\0', '\n']).lines().collect();
    lines[lines.len().saturating_sub(count)..].iter().flat_map(|line| ["\n  ", line]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_the_end_of_the_verifiers_log() {
        let log: String = (0..100).map(|line| format!("line {line}\n")).collect();
        assert_eq!(last_lines(&log, 2), "\n  line 98\n  line 99");
        assert_eq!(last_lines("", 2), "");
    }
}
