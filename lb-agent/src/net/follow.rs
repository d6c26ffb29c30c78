//! Following the kernel: everything once, then every change; everything again when changes were lost.

use std::io;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_REPLACE, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{Handle, IpVersion, MulticastGroup};

use super::message::{Changed, take_in};
use super::mirror::Mirror;

/// Bytes of notifications that the kernel keeps for us: some ten thousand.
const RECEIVE_BUFFER: u32 = 8 << 20;

/// How much of the network is of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Devices, addresses and default routes.
    Devices,
    /// All routes, rules, neighbours and bridge tables, too.
    Ways,
}

/// A notification.
#[derive(Debug)]
pub enum Notice {
    /// Something changed; see [`Follower::take_in`].
    Message(Box<NetlinkMessage<RouteNetlinkMessage>>),
    /// The kernel dropped notifications: [`Follower::dump`] has to be asked again.
    Lost,
    /// The connection ended.
    Closed,
}

/// A subscription to the kernel's notifications in the network namespace of the calling thread.
pub struct Follower {
    depth: Depth,
    handle: Handle,
    notices: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

impl Follower {
    /// Subscribes. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses a netlink socket.
    pub fn connect(depth: Depth) -> io::Result<Self> {
        let mut groups = vec![
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        if depth == Depth::Ways {
            groups.extend([MulticastGroup::Neigh, MulticastGroup::Ipv4Rule, MulticastGroup::Ipv6Rule]);
        }
        let (mut connection, _, notices) = rtnetlink::new_multicast_connection(&groups)?;
        connection.socket_mut().socket_mut().set_rx_buf_sz(RECEIVE_BUFFER)?;
        tokio::spawn(connection);
        Ok(Self { depth, handle: connect()?, notices })
    }

    /// A handle for requests, on a connection that notifications cannot fill up.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Asks for everything there is.
    ///
    /// # Errors
    /// When a request fails.
    pub async fn dump(&self) -> Result<Mirror, rtnetlink::Error> {
        let handle = &self.handle;
        let mut mirror = Mirror::default();
        let mut links = handle.link().get().execute();
        while let Some(link) = links.try_next().await? {
            take_in(&mut mirror, &RouteNetlinkMessage::NewLink(link), false);
        }
        let mut addresses = std::pin::pin!(handle.address().get().execute());
        while let Some(address) = addresses.try_next().await? {
            take_in(&mut mirror, &RouteNetlinkMessage::NewAddress(address), false);
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let mut routes = std::pin::pin!(handle.route().get(request).execute());
            while let Some(route) = routes.try_next().await? {
                self.take(&mut mirror, &RouteNetlinkMessage::NewRoute(route), false);
            }
        }
        if self.depth == Depth::Devices {
            return Ok(mirror);
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
            let mut request = handle.neighbours().get();
            request.message_mut().header.family = family;
            let mut neighbours = std::pin::pin!(request.execute());
            while let Some(neighbour) = neighbours.try_next().await? {
                take_in(&mut mirror, &RouteNetlinkMessage::NewNeighbour(neighbour), false);
            }
        }
        for version in [IpVersion::V4, IpVersion::V6] {
            let mut rules = std::pin::pin!(handle.rule().get(version).execute());
            while let Some(rule) = rules.try_next().await? {
                take_in(&mut mirror, &RouteNetlinkMessage::NewRule(rule), false);
            }
        }
        Ok(mirror)
    }

    /// The next notification.
    pub async fn next(&mut self) -> Notice {
        notice(self.notices.next().await)
    }

    /// The next notification, when one is there already.
    pub fn try_next(&mut self) -> Option<Notice> {
        self.notices.try_recv().ok().map(|message| notice(Some(message)))
    }

    /// Takes a notification into the mirror.
    pub fn take_in(&self, mirror: &mut Mirror, message: &NetlinkMessage<RouteNetlinkMessage>) -> Changed {
        match &message.payload {
            NetlinkPayload::InnerMessage(inner) => {
                self.take(mirror, inner, message.header.flags & NLM_F_REPLACE != 0)
            }
            _ => Changed::default(),
        }
    }

    /// Takes in what is of interest: without ways, default routes are all that matters of a routing table, which may be
    /// that of the whole Internet.
    fn take(&self, mirror: &mut Mirror, message: &RouteNetlinkMessage, replaces: bool) -> Changed {
        match message {
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)
                if self.depth == Depth::Devices && route.header.destination_prefix_length != 0 =>
            {
                Changed::default()
            }
            _ => take_in(mirror, message, replaces),
        }
    }
}

/// Notifications about traffic control filters that are gone, in the network namespace of the calling thread. A connection
/// of its own: what others do with traffic control is of no interest, and may be much.
pub struct FilterRemovals {
    notices: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

impl FilterRemovals {
    /// Subscribes. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses a netlink socket.
    pub fn connect() -> io::Result<Self> {
        let (connection, _, notices) = rtnetlink::new_multicast_connection(&[MulticastGroup::Tc])?;
        tokio::spawn(connection);
        Ok(Self { notices })
    }

    /// Waits until a filter or a qdisc is removed somewhere, or the kernel has dropped notifications that may have said so.
    pub async fn next(&mut self) {
        while let Some((message, _)) = self.notices.next().await {
            match message.payload {
                NetlinkPayload::Overrun(_)
                | NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::DelTrafficFilter(_) | RouteNetlinkMessage::DelQueueDiscipline(_),
                ) => return,
                _ => {}
            }
        }
        std::future::pending::<()>().await;
    }
}

fn notice(message: Option<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>) -> Notice {
    match message {
        None => Notice::Closed,
        Some((message, _)) => match message.payload {
            NetlinkPayload::Overrun(_) => Notice::Lost,
            _ => Notice::Message(Box::new(message)),
        },
    }
}

/// A connection for requests in the network namespace of the calling thread. Needs a tokio runtime.
///
/// # Errors
/// When the kernel refuses a netlink socket.
pub fn connect() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Has the kernel ask who has an address. `known`: the answer is known, but the bridge has forgotten the port, and a
/// new answer makes it learn again.
///
/// # Errors
/// When the kernel refuses, for example because the device has gone.
pub async fn ask_neighbour(
    handle: &Handle,
    interface: u32,
    address: std::net::IpAddr,
    known: bool,
) -> Result<(), rtnetlink::Error> {
    let mut request = handle.neighbours().add(interface, address).replace();
    let header = &mut request.message_mut().header;
    if known {
        header.state = NeighbourState::Probe;
    } else {
        header.state = NeighbourState::None;
        header.flags = NeighbourFlags::Use;
    }
    request.execute().await
}
