//! Translation when a socket connects or sends, instead of packet by packet: for processes of the node, and with
//! `--socket-lb=all` for pods, too.
//!
//! The programs sit at a cgroup and see the addresses that applications pass to `connect` and `sendto`, or are about to
//! be shown by `recvfrom` and `getpeername`. Between the two calls the socket talks to the endpoint itself; no packet is
//! touched. Packets and bytes of such connections are therefore not counted, connections are.
//!
//! Unlike the programs at devices these run in process context: the others interrupt them on the same CPU, and they one
//! another. They use no memory of the CPU, and add to counters atomically ([`count`]).

mod choose;
mod count;
mod form;
mod peer;
mod tables;
mod who;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use lb_common::layout::{ConnectedSocket, SeenPorts, ServiceStat, SocketKey};
use lb_common::proto;
use lb_common::reason::Reason;

use choose::{Answer, Served};
use form::{Form, Mapped4, Plain4, Plain6};
use tables::SOCKETS;
use who::Who;

use crate::clock::now;
use crate::ports;

/// The call goes on, with the address as it stands in the context now.
const ALLOW: i32 = 1;
/// The call fails.
const DENY: i32 = 0;

/// `ECONNREFUSED` and `ETIMEDOUT`, include/uapi/asm-generic/errno.h.
const CONNECTION_REFUSED: i32 = 111;
const TIMED_OUT: i32 = 110;

/// `connect` of an IPv4 socket, or of an IPv6 socket with an IPv4 address structure.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect::<Plain4>(ctx.sock_addr)
}

/// `connect` of an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    if form::is_mapped(ctx.sock_addr) {
        connect::<Mapped4>(ctx.sock_addr)
    } else {
        connect::<Plain6>(ctx.sock_addr)
    }
}

/// A datagram that names its receiver, over IPv4; of IPv6 sockets, too.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    send::<Plain4>(ctx.sock_addr)
}

/// A datagram that names its receiver, over IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    send::<Plain6>(ctx.sock_addr)
}

/// The sender of a datagram that an IPv4 socket is about to be shown.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    peer::sender::<Plain4>(ctx.sock_addr);
    ALLOW
}

/// The sender of a datagram that an IPv6 socket is about to be shown.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    if form::is_mapped(ctx.sock_addr) {
        peer::sender::<Mapped4>(ctx.sock_addr);
    } else {
        peer::sender::<Plain6>(ctx.sock_addr);
    }
    ALLOW
}

/// The peer that an IPv4 socket is about to be shown.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    peer::name::<Plain4>(ctx.sock_addr);
    ALLOW
}

/// The peer that an IPv6 socket is about to be shown.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    if form::is_mapped(ctx.sock_addr) {
        peer::name::<Mapped4>(ctx.sock_addr);
    } else {
        peer::name::<Plain6>(ctx.sock_addr);
    }
    ALLOW
}

/// A socket is closed (Linux 5.9).
#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    // Most sockets end without ever having been one of a Service's: the port of the peer tells, which an entry has in common
    // with its socket until that is disconnected.
    let port = form::peer_port(ctx.sock);
    if port.raw() == 0 || ports::is_noted(SeenPorts::Sockets, port) {
        forget(cookie_of_socket(ctx.sock));
    }
    ALLOW
}

/// The number of the socket in the context.
#[inline(always)]
fn cookie(ctx: *mut bpf_sock_addr) -> u64 {
    // SAFETY: a helper call on the context.
    unsafe { bpf_get_socket_cookie(ctx.cast()) }
}

#[inline(always)]
fn cookie_of_socket(ctx: *mut bpf_sock) -> u64 {
    // SAFETY: a helper call on the context.
    unsafe { bpf_get_socket_cookie(ctx.cast()) }
}

/// The socket is connected to no Service any more.
#[inline(always)]
fn forget(cookie: u64) {
    if SOCKETS.get_ptr(&cookie).is_some() {
        // Nobody else removes entries but the kernel, to make room: gone is gone.
        let _ = SOCKETS.remove(&cookie);
    }
}

/// Fails the call with an error number.
#[inline(always)]
fn deny(error: i32) -> i32 {
    if who::sets_errors() {
        // SAFETY: a helper without pointers (in these programs since Linux 6.1). Without it, the error is `EPERM`.
        unsafe { bpf_set_retval(-error) };
    }
    DENY
}

/// What a Service that cannot be served does to the call: refused is refused (S-21); what packets would silently
/// disappear for ends here as it would end there, only at once (S-22, S-23, S-34).
#[inline(always)]
fn fail(who: &Who, service: u32, reason: Reason, refused: bool) -> i32 {
    if who.is_pod() && !who::sets_errors() {
        // The pod's packets are met at its device: there they are refused or dropped, and counted.
        return ALLOW;
    }
    count::reason(reason);
    if service != 0 {
        count::service(service, if refused { ServiceStat::Refused } else { ServiceStat::Dropped });
    }
    deny(if refused { CONNECTION_REFUSED } else { TIMED_OUT })
}

#[inline(always)]
fn connect<F: Form>(ctx: *mut bpf_sock_addr) -> i32 {
    let Some(who) = Who::of(ctx) else { return ALLOW };
    let protocol = form::protocol(ctx);
    if protocol != proto::TCP && protocol != proto::UDP {
        return ALLOW;
    }
    let (now, cookie, end) = (now(), cookie(ctx), F::end(ctx));
    match choose::choose::<F::Net>(&who, &end, protocol, now, None) {
        Answer::Pass => {
            forget(cookie);
            ALLOW
        }
        Answer::Fail { service, reason, refused } => fail(&who, service, reason, refused),
        Answer::Served(Served { choice, shown, .. }) => {
            let socket = ConnectedSocket {
                frontend: shown,
                choice,
                namespace: who.namespace(),
                created: now,
                protocol,
                zero: [0; 3],
            };
            ports::note(SeenPorts::Sockets, choice.endpoint.port);
            // A socket that is not in the table works, but is shown its endpoint instead of the Service.
            let _ = SOCKETS.insert(&cookie, &socket, 0);
            count::connection::<F::Net>(choice.service, choice.backend);
            F::store(ctx, &choice.endpoint);
            ALLOW
        }
    }
}

#[inline(always)]
fn send<F: Form>(ctx: *mut bpf_sock_addr) -> i32 {
    let Some(who) = Who::of(ctx) else { return ALLOW };
    if form::protocol(ctx) != proto::UDP {
        return ALLOW;
    }
    let (now, cookie, end) = (now(), cookie(ctx), F::end(ctx));
    if let Some(socket) = SOCKETS.get_ptr(&cookie) {
        // SAFETY: a live element of the map; an entry is written before it can be found, and never changed.
        let socket = unsafe { &*socket };
        // A connected socket that names its peer hears answers from there only.
        if socket.frontend == end {
            F::store(ctx, &socket.choice.endpoint);
            return ALLOW;
        }
    }
    let key = SocketKey { cookie, end };
    match choose::choose::<F::Net>(&who, &end, proto::UDP, now, Some(&key)) {
        Answer::Pass => {
            peer::spoken_to_directly(&key);
            ALLOW
        }
        Answer::Fail { service, reason, refused } => fail(&who, service, reason, refused),
        Answer::Served(Served { choice, shown, kept }) => {
            if !peer::remember(&key, &choice, &shown, kept, now) {
                count::service(choice.service, ServiceStat::Dropped);
                count::reason(Reason::ConnectionTableFull);
                return deny(TIMED_OUT);
            }
            if !kept {
                count::connection::<F::Net>(choice.service, choice.backend);
            }
            F::store(ctx, &choice.endpoint);
            ALLOW
        }
    }
}
