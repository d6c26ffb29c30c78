//! What can go wrong between the agent and the kernel, each with what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use super::xdp::XdpPlace;

/// An error of the dataplane.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent was built without the datapath object and none was named.
    #[error(
        "this lb-agent was built without the datapath object: build it with `cargo xtask build` or name an object \
         with --object"
    )]
    NoObject,
    /// The object could not be read.
    #[error("cannot read the datapath object {path}")]
    ReadObject {
        /// Where it was looked for.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A file system operation below the bpf root failed.
    #[error("cannot {action} {path}")]
    Path {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The bpf root is not on bpffs.
    #[error(
        "{0} is not on a bpf file system: mount one there (`mount -t bpf bpf {0}`) or choose another place with \
         --bpf-root"
    )]
    NotBpffs(PathBuf),
    /// There is no cgroup v2 hierarchy.
    #[error(
        "no cgroup v2 file system is mounted: mount one (`mount -t cgroup2 none DIR`), name it with --cgroup, or serve \
         pods only with --socket-lb off"
    )]
    NoCgroup,
    /// The directory is no cgroup.
    #[error(
        "{0} is no directory of a cgroup v2 file system: name one with --cgroup, or serve pods only with --socket-lb \
         off"
    )]
    NotCgroup(PathBuf),
    /// There are no tables to read.
    #[error(
        "no tables below {0}: no lb-agent has run with this --bpf-root, or `lb-agent cleanup` removed them"
    )]
    NoTables(PathBuf),
    /// Tables of another layout, met by a command that only reads.
    #[error("the tables below {root} were made by another version of lb-agent: {reason}")]
    Incompatible {
        /// The bpf root.
        root: PathBuf,
        /// The first difference found.
        reason: String,
    },
    /// The kernel took a size that does not fit the layout.
    #[error("{0}")]
    Size(String),
    /// The object could not be loaded.
    #[error("cannot load the datapath object (does `lb-agent check` find everything?)")]
    Load(#[source] Box<aya::EbpfError>),
    /// The object lacks a program.
    #[error("the datapath object has no classifier program `{0}`: it belongs to another version of lb-agent")]
    NoProgram(&'static str),
    /// The kernel's verifier refused a program.
    #[error("the kernel refused the program `{program}`: {cause}{log}")]
    Verifier {
        /// Name of the program.
        program: &'static str,
        /// What the kernel returned.
        cause: String,
        /// End of the verifier's log, on lines of its own; empty when it wrote none.
        log: String,
    },
    /// A bpf(2) call failed.
    #[error("{action} failed")]
    Bpf {
        /// What was tried.
        action: String,
        /// Cause.
        source: io::Error,
    },
    /// The XDP program could not be attached.
    #[error("the XDP program does not run at {device} ({}): {}", place.name(), xdp_hint(source))]
    Xdp {
        /// Where it was to run.
        place: XdpPlace,
        /// At which device.
        device: String,
        /// Cause.
        source: io::Error,
    },
    /// A request to the kernel's traffic control failed.
    #[error("{action} on {device} failed")]
    TrafficControl {
        /// What was tried.
        action: &'static str,
        /// On which device.
        device: String,
        /// Cause.
        source: Box<rtnetlink::Error>,
    },
}

/// Shorthand for results of this area.
pub type Result<T> = std::result::Result<T, Error>;

/// The error number that a netlink request was answered with, positive.
pub(super) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| code.get().abs()),
        _ => None,
    }
}

/// What to do about a device that refuses an XDP program.
fn xdp_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            "another XDP program is there; take it away (`ip link set dev DEVICE xdp off`), or leave the device to it"
        }
        Some(libc::EOPNOTSUPP) => {
            "its driver runs no XDP programs; --xdp=generic or auto does without the driver"
        }
        Some(libc::ERANGE | libc::ENOSPC | libc::ENOMEM) => {
            "its driver has no room: a smaller MTU or fewer queues may help, --xdp=generic or auto does without the driver"
        }
        Some(libc::EINVAL) => {
            "its driver refuses (its MTU, its receive offloads or its number of queues, mostly), or the kernel is older \
             than 5.9; --xdp=generic or auto does without the driver"
        }
        Some(libc::ENODEV) => "the device is gone",
        _ => "the kernel refuses",
    }
}

impl Error {
    /// True when other flags would help, rather than another kernel or other privileges.
    pub fn is_of_configuration(&self) -> bool {
        matches!(
            self,
            Self::NoObject
                | Self::ReadObject { .. }
                | Self::NotBpffs(_)
                | Self::Size(_)
                | Self::NoCgroup
                | Self::NotCgroup(_)
        )
    }

    /// True when the device has gone meanwhile, as devices of pods do at any time: there is nothing to be done about it.
    pub fn is_of_a_gone_device(&self) -> bool {
        let number = match self {
            Self::Bpf { source, .. } | Self::Xdp { source, .. } => source.raw_os_error(),
            Self::TrafficControl { source, .. } => errno(source),
            _ => None,
        };
        number == Some(libc::ENODEV)
    }

    pub(crate) fn path(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Path { action, path: path.to_owned(), source }
    }

    pub(crate) fn bpf(action: impl Into<String>, source: io::Error) -> Self {
        Self::Bpf { action: action.into(), source }
    }
}
