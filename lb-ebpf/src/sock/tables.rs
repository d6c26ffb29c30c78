//! Tables of sockets, see `lb_common::layout`. Sizes are placeholders, as everywhere.

use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use lb_common::layout::{ConnectedSocket, SocketFlow, SocketKey, SocketPeer};

/// Sockets that are connected to a Service, by cookie. When the table is full the kernel evicts what was unused longest:
/// such a socket goes on working, but is shown its endpoint as its peer.
#[map]
pub static SOCKETS: LruHashMap<u64, ConnectedSocket> = LruHashMap::with_max_entries(1, 0);

/// Endpoints of unconnected UDP sockets, by socket and frontend.
#[map]
pub static SOCKET_FLOWS: LruHashMap<SocketKey, SocketFlow> = LruHashMap::with_max_entries(1, 0);

/// Frontends of unconnected UDP sockets, by socket and endpoint.
#[map]
pub static SOCKET_PEERS: LruHashMap<SocketKey, SocketPeer> = LruHashMap::with_max_entries(1, 0);
