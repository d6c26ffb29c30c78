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
        let name = Self::socket_name(root);
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        Ok(Self { _listener: listener })
    }

    /// Name of the socket, without the null byte that abstract names begin with.
    pub(crate) fn socket_name(root: &Path) -> Vec<u8> {
        let mut name = b"lb-agent:".to_vec();
        name.extend_from_slice(root.as_os_str().as_bytes());
        if name.len() > LONGEST {
            // The end of a path tells it from its neighbours.
            name.drain(9..9 + name.len() - LONGEST);
        }
        name
    }
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
        drop(first);
        Instance::claim(root.as_ref()).unwrap();
    }
}
