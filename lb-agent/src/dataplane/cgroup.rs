//! The programs that see what sockets connect and send to: loaded for the kernel at hand, attached to a cgroup so that
//! they outlive the agent, and kept there.

mod links;
mod mount;

use std::os::fd::{AsFd, BorrowedFd};

use aya::Ebpf;
use aya::programs::{CgroupSock, CgroupSockAddr, Program, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported};
use lb_common::layout::INITIAL_NAMESPACE;

use super::error::{Error, Result};
use super::{load, sys};

pub use links::{SocketAttacher, SocketRepair, detach_sockets};
pub use mount::{Cgroup, find_cgroup};

/// A program and the call it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SocketHook {
    /// `connect` to an IPv4 address.
    Connect4,
    /// `connect` to an IPv6 address.
    Connect6,
    /// `sendto` an IPv4 address.
    Sendmsg4,
    /// `sendto` an IPv6 address.
    Sendmsg6,
    /// `recvfrom` of an IPv4 socket.
    Recvmsg4,
    /// `recvfrom` of an IPv6 socket.
    Recvmsg6,
    /// `getpeername` of an IPv4 socket.
    Getpeername4,
    /// `getpeername` of an IPv6 socket.
    Getpeername6,
    /// The end of a socket.
    Release,
}

impl SocketHook {
    /// Every hook, in the order of attaching: what shows a socket's peer first, so that no application is shown an
    /// endpoint.
    pub const ALL: [Self; 9] = [
        Self::Getpeername4,
        Self::Getpeername6,
        Self::Recvmsg4,
        Self::Recvmsg6,
        Self::Release,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::Connect4,
        Self::Connect6,
    ];

    /// Name of the program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::Recvmsg4 => "recvmsg4",
            Self::Recvmsg6 => "recvmsg6",
            Self::Getpeername4 => "getpeername4",
            Self::Getpeername6 => "getpeername6",
            Self::Release => "sock_release",
        }
    }

    /// Number of its `enum bpf_attach_type` (include/uapi/linux/bpf.h).
    const fn attach_type(self) -> u32 {
        match self {
            Self::Connect4 => 10,
            Self::Connect6 => 11,
            Self::Sendmsg4 => 14,
            Self::Sendmsg6 => 15,
            Self::Recvmsg4 => 19,
            Self::Recvmsg6 => 20,
            Self::Getpeername4 => 29,
            Self::Getpeername6 => 30,
            Self::Release => 34,
        }
    }
}

/// Whose sockets are translated, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// Cookie of the node's network namespace; 0 takes every namespace for the node's.
    pub namespace: u64,
    /// Sockets of other namespaces are translated, too.
    pub pods: bool,
    /// The programs can say with which error a call fails ([`sets_errors`]).
    pub errors: bool,
    /// Seconds of silence after which an unconnected UDP socket's endpoint is forgotten.
    pub idle: u32,
}

impl SocketOptions {
    /// For this kernel, and for the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Bpf`] when the kernel does not tell.
    pub fn of_this_node(pods: bool, idle: u32) -> Result<Self> {
        let cookie = sys::netns_cookie()
            .map_err(|source| Error::bpf("asking for the cookie of this network namespace", source))?;
        Ok(Self { namespace: cookie.unwrap_or(INITIAL_NAMESPACE), pods, errors: sets_errors(), idle })
    }
}

/// True when programs at `connect` and `sendto` can choose the error that a call fails with (`bpf_set_retval`, in these
/// programs since Linux 6.1); without it a refused process of the node is told `EPERM`, and a refused pod's packets are
/// refused at its device.
pub(super) fn sets_errors() -> bool {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval).unwrap_or(false)
}

/// Has the kernel verify the programs.
pub(super) fn verify(ebpf: &mut Ebpf) -> Result<()> {
    for hook in SocketHook::ALL {
        let name = hook.program();
        let missing = || Error::NoProgram(name);
        let program = ebpf.program_mut(name).ok_or_else(missing)?;
        let loaded = match hook {
            SocketHook::Release => <&mut CgroupSock>::try_from(program).map_err(|_| missing())?.load(),
            _ => <&mut CgroupSockAddr>::try_from(program).map_err(|_| missing())?.load(),
        };
        loaded.map_err(|error| load::refused(name, error))?;
    }
    Ok(())
}

/// Descriptor of a hook's program.
pub(super) fn program_fd(ebpf: &Ebpf, hook: SocketHook) -> Result<BorrowedFd<'_>> {
    let missing = || Error::NoProgram(hook.program());
    let fd = match ebpf.program(hook.program()).ok_or_else(missing)? {
        Program::CgroupSockAddr(program) => program.fd(),
        Program::CgroupSock(program) => program.fd(),
        _ => return Err(missing()),
    };
    Ok(fd.map_err(|_| missing())?.as_fd())
}
