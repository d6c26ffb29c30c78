//! From the address that an application named to the endpoint its socket gets.

use lb_common::layout::{FrontendKind, Policy, ServiceStat, SocketChoice, SocketEnd, SocketFlow, SocketKey};
use lb_common::lookup::{self, Unserved};
use lb_common::reason::Reason;

use super::count;
use super::form::Sockets;
use super::tables::{SOCKET_FLOWS, SOCKET_PEERS};
use super::who::{self, Who};
use crate::select;
use crate::tables::KernelTables;

/// Draws of an endpoint for an unconnected UDP socket: what the socket knows under another Service's address is drawn
/// again, because answers from there could not be told apart.
const DRAWS: u32 = 4;

/// What becomes of a call.
pub enum Answer {
    /// It goes on as it is.
    Pass,
    /// It fails.
    Fail {
        /// Index of the Service port, 0 for none.
        service: u32,
        /// Why.
        reason: Reason,
        /// Refused; otherwise dropped.
        refused: bool,
    },
    /// It goes to an endpoint.
    Served(Served),
}

/// The endpoint of a call.
pub struct Served {
    /// The endpoint.
    pub choice: SocketChoice,
    /// What the application is to see in its place.
    pub shown: SocketEnd,
    /// True when the socket's datagrams to that address went there before.
    pub kept: bool,
}

/// Chooses the endpoint for a call to `end`. An unconnected UDP socket's `flow` keeps its endpoint while that serves.
#[inline(always)]
pub fn choose<N: Sockets>(
    who: &Who,
    end: &SocketEnd,
    protocol: u8,
    now: u32,
    flow: Option<&SocketKey>,
) -> Answer {
    let named = N::unmapped(end.address);
    let meant = N::meant(named);
    let listed = N::listed(meant);
    // The node's loopback is a node port address, if there are node ports on it (S-36); a pod's is its own.
    if who.is_pod() && listed == N::LOOPBACK {
        return Answer::Pass;
    }
    let Some(frontend) = lookup::frontend::<N, _>(&KernelTables, listed, end.port, protocol) else {
        return match lookup::classify_address::<N, _>(&KernelTables, listed) {
            Unserved::UnknownPort => Answer::Fail { service: 0, reason: Reason::UnknownPort, refused: true },
            Unserved::Unallocated => {
                Answer::Fail { service: 0, reason: Reason::UnallocatedAddress, refused: false }
            }
            Unserved::NotOurs => Answer::Pass,
        };
    };
    let service = frontend.service;
    let policy = lookup::policy(&KernelTables, service);
    if policy.flags & Policy::SOURCE_RANGES != 0 && matches!(frontend.kind, FrontendKind::LoadBalancer) {
        if who.is_pod() {
            // Its address is not known before its packets are: they are judged at its device (S-34).
            return Answer::Pass;
        }
        if policy.flags & Policy::HOST_ALLOWED == 0 {
            return Answer::Fail { service, reason: Reason::SourceNotAllowed, refused: false };
        }
    }
    let shown = SocketEnd::new(N::mapped(meant), end.port);
    if let Some(choice) = flow.and_then(|flow| kept::<N>(flow, service, now)) {
        return Answer::Served(Served { choice, shown, kept: true });
    }
    let source = N::of_namespace(who.namespace());
    let mut draws = if flow.is_some() && policy.affinity_timeout == 0 { DRAWS } else { 1 };
    loop {
        let choice = match select::select::<N>(frontend, policy, who.client(), source, None, now) {
            Ok(choice) => choice,
            Err(reason) => {
                let refused = matches!(reason, Reason::NoEndpoint);
                return Answer::Fail { service, reason, refused };
            }
        };
        let endpoint = SocketEnd::new(N::mapped(choice.backend.address), choice.backend.port);
        draws -= 1;
        if draws == 0 || !flow.is_some_and(|flow| is_known_otherwise(flow.cookie, &endpoint, &shown, now)) {
            let choice = SocketChoice { endpoint, service, backend: choice.index };
            return Answer::Served(Served { choice, shown, kept: false });
        }
    }
}

/// The endpoint that the flow went to before, when that still is right.
#[inline(always)]
fn kept<N: Sockets>(key: &SocketKey, service: u32, now: u32) -> Option<SocketChoice> {
    let flow = SOCKET_FLOWS.get_ptr(key)?;
    // SAFETY: a live element of the map. Another thread that shares the socket may write it meanwhile: what is read is
    // compared with the row.
    let SocketFlow { choice, last_seen, .. } = unsafe { *flow };
    if choice.service != service || now.wrapping_sub(last_seen) >= who::idle() {
        return None;
    }
    let row = N::backend(&KernelTables, choice.backend)?;
    if !choice.serves(&row, N::mapped(row.address)) {
        // A Service that refuses from now on is to count no second time, and nothing is to be remembered (S-52).
        let _ = SOCKET_FLOWS.remove(key);
        count::service(service, ServiceStat::Reselected);
        return None;
    }
    Some(choice)
}

/// True when datagrams from the endpoint would be taken for another Service's answers.
#[inline(always)]
fn is_known_otherwise(cookie: u64, endpoint: &SocketEnd, shown: &SocketEnd, now: u32) -> bool {
    let key = SocketKey { cookie, end: *endpoint };
    let Some(peer) = SOCKET_PEERS.get_ptr(&key) else { return false };
    // SAFETY: a live element of the map; single fields may change meanwhile, which costs a draw at most.
    let peer = unsafe { &*peer };
    peer.frontend != *shown && peer.is_fresh(now, who::idle())
}
