//! What applications are shown: the Service they asked, not the endpoint that answered.

use aya_ebpf::bindings::bpf_sock_addr;
use lb_common::layout::{SeenPorts, SocketChoice, SocketEnd, SocketFlow, SocketKey, SocketPeer};

use super::form::{self, Form};
use super::tables::{SOCKET_FLOWS, SOCKET_PEERS, SOCKETS};
use super::who::{self, Who};
use crate::clock::now;
use crate::ports;

/// The peer of a connected socket.
#[inline(always)]
pub fn name<F: Form>(ctx: *mut bpf_sock_addr) {
    if ports::is_noted(SeenPorts::Sockets, form::port(ctx)) && Who::of(ctx).is_some() {
        connected::<F>(ctx, super::cookie(ctx), &F::end(ctx));
    }
}

/// The sender of a datagram.
#[inline(always)]
pub fn sender<F: Form>(ctx: *mut bpf_sock_addr) {
    if !ports::is_noted(SeenPorts::Sockets, form::port(ctx)) {
        // No Service's endpoint, whoever asks.
        return;
    }
    if Who::of(ctx).is_none() || form::protocol(ctx) != lb_common::proto::UDP {
        return;
    }
    let (cookie, end) = (super::cookie(ctx), F::end(ctx));
    if connected::<F>(ctx, cookie, &end) {
        return;
    }
    let Some(peer) = SOCKET_PEERS.get_ptr_mut(&SocketKey { cookie, end }) else { return };
    let now = now();
    // SAFETY: a live element of the map. Another thread that shares the socket may write it meanwhile; then both
    // frontends are right.
    let SocketPeer { frontend, last_seen, .. } = unsafe { *peer };
    if now.wrapping_sub(last_seen) >= who::idle() {
        return;
    }
    F::store(ctx, &frontend);
    if last_seen != now {
        // SAFETY: as above; an aligned word.
        unsafe { (*peer).last_seen = now };
        if let Some(flow) = SOCKET_FLOWS.get_ptr_mut(&SocketKey { cookie, end: frontend }) {
            // SAFETY: as above.
            unsafe { (*flow).last_seen = now };
        }
    }
}

/// Shows the frontend when `end` is the endpoint that the socket is connected to.
#[inline(always)]
fn connected<F: Form>(ctx: *mut bpf_sock_addr, cookie: u64, end: &SocketEnd) -> bool {
    let Some(socket) = SOCKETS.get_ptr(&cookie) else { return false };
    // SAFETY: a live element of the map; an entry is written before it can be found, and never changed.
    let socket = unsafe { &*socket };
    if socket.choice.endpoint != *end {
        return false;
    }
    F::store(ctx, &socket.frontend);
    true
}

/// Notes where a datagram of an unconnected socket goes, and under which address the application knows the endpoint.
/// False when there is no room.
#[inline(always)]
pub fn remember(key: &SocketKey, choice: &SocketChoice, shown: &SocketEnd, kept: bool, now: u32) -> bool {
    let peer_key = SocketKey { cookie: key.cookie, end: choice.endpoint };
    // Answers may come as soon as the datagram is out: the peer first.
    if let Some(peer) = SOCKET_PEERS.get_ptr_mut(&peer_key) {
        // SAFETY: a live element of the map, see `sender`.
        unsafe {
            if (*peer).frontend != *shown {
                (*peer).frontend = *shown;
            }
            if (*peer).last_seen != now {
                (*peer).last_seen = now;
            }
        }
    } else {
        ports::note(SeenPorts::Sockets, choice.endpoint.port);
        let peer = SocketPeer { frontend: *shown, last_seen: now, zero: 0 };
        if SOCKET_PEERS.insert(&peer_key, &peer, 0).is_err() {
            return false;
        }
    }
    if kept {
        if let Some(flow) = SOCKET_FLOWS.get_ptr_mut(key) {
            // SAFETY: as above.
            unsafe {
                if (*flow).last_seen != now {
                    (*flow).last_seen = now;
                }
            }
        }
        return true;
    }
    let flow = SocketFlow { choice: *choice, last_seen: now, zero: 0 };
    SOCKET_FLOWS.insert(key, &flow, 0).is_ok()
}

/// The application sent a datagram to an address that is no Service's: from there it hears what it talks to.
#[inline(always)]
pub fn spoken_to_directly(key: &SocketKey) {
    if SOCKET_PEERS.get_ptr(key).is_some() {
        // Gone is gone, whoever removed it.
        let _ = SOCKET_PEERS.remove(key);
    }
}
