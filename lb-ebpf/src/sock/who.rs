//! Whose a socket is, and what the agent said about it when it loaded the programs.

use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use lb_common::layout::{Client, INITIAL_NAMESPACE};

use crate::config;

/// 1 when sockets of other network namespaces are translated, too.
#[unsafe(no_mangle)]
static SOCKET_PODS: Global<u32> = Global::new(0);
/// 1 when programs can say with which error a call fails.
#[unsafe(no_mangle)]
static SOCKET_ERRORS: Global<u32> = Global::new(1);
/// Seconds of silence after which an unconnected UDP socket's endpoint is forgotten.
#[unsafe(no_mangle)]
static SOCKET_IDLE: Global<u32> = Global::new(120);

/// See [`SOCKET_ERRORS`].
#[inline(always)]
pub fn sets_errors() -> bool {
    SOCKET_ERRORS.load() != 0
}

/// See [`SOCKET_IDLE`].
#[inline(always)]
pub fn idle() -> u32 {
    SOCKET_IDLE.load()
}

/// The process behind a socket.
pub struct Who {
    client: Client,
    namespace: u64,
}

impl Who {
    /// The owner of the socket in the context; `None` when its calls are to be left alone.
    #[inline(always)]
    pub fn of(ctx: *mut bpf_sock_addr) -> Option<Self> {
        // SAFETY: a helper call on the context (Linux 5.7).
        let namespace = unsafe { bpf_get_netns_cookie(ctx.cast()) };
        let own = match config::netns_cookie() {
            // SAFETY: without a context the helper tells the cookie of the initial namespace.
            INITIAL_NAMESPACE => unsafe { bpf_get_netns_cookie(core::ptr::null_mut()) },
            0 => namespace,
            own => own,
        };
        let client = if namespace == own {
            Client::Host
        } else if SOCKET_PODS.load() != 0 {
            Client::Pod
        } else {
            return None;
        };
        Some(Self { client, namespace })
    }

    /// The kind of client.
    #[inline(always)]
    pub fn client(&self) -> Client {
        self.client
    }

    /// True for a process in a network namespace other than the node's.
    #[inline(always)]
    pub fn is_pod(&self) -> bool {
        matches!(self.client, Client::Pod)
    }

    /// Cookie of its network namespace.
    #[inline(always)]
    pub fn namespace(&self) -> u64 {
        self.namespace
    }
}
