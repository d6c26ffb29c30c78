//! One agent at a time for a bpf root: a socket in the abstract namespace, which ends with its process, however that
//! ends.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

/// Proof of being the only agent of a bpf root (in this network namespace).
#[derive(Debug)]
pub struct Instance {
    _listener: UnixListener,
}

/// Longest name of an abstract socket.
const LONGEST: usize = 107;

impl Instance {
    /// Claims the bpf root.
    ///
    /// # Errors
    /// `AddrInUse` when an agent is running.
    pub fn claim(root: &Path) -> io::Result<Self> {
        Self::of(&Self::socket_name(root))
    }

    /// Claims to be the only one who watches the events of a bpf root.
    ///
    /// # Errors
    /// `AddrInUse` when somebody does.
    pub fn watching(root: &Path) -> io::Result<Self> {
        Self::of(&name("lb-agent-watch:", root))
    }

    fn of(name: &[u8]) -> io::Result<Self> {
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
        Ok(Self { _listener: listener })
    }

    /// Name of the agent's socket, without the null byte that abstract names begin with.
    pub(crate) fn socket_name(root: &Path) -> Vec<u8> {
        name("lb-agent:", root)
    }
}

/// Name of a socket about a bpf root.
fn name(what: &str, root: &Path) -> Vec<u8> {
    let mut name = what.as_bytes().to_vec();
    name.extend_from_slice(root.as_os_str().as_bytes());
    if name.len() > LONGEST {
        // The end of a path tells it from its neighbours.
        name.drain(what.len()..what.len() + name.len() - LONGEST);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_claimed_once_at_a_time_and_others_are_free() {
        let root = format!("/sys/fs/bpf/lbt-app-{}/{}", std::process::id(), "x".repeat(150));
        let first = Instance::claim(root.as_ref()).unwrap();
        assert_eq!(Instance::claim(root.as_ref()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        Instance::claim(format!("{root}y").as_ref()).unwrap();
        Instance::watching(root.as_ref()).unwrap();
        drop(first);
        Instance::claim(root.as_ref()).unwrap();
    }
}
