//! Links, addresses, routes and neighbours of one namespace, through rtnetlink.

use std::{
    io::ErrorKind,
    net::IpAddr,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags},
    link::{InfoData, InfoVeth, LinkAttribute, LinkMessage, State},
    neighbour::NeighbourState,
    route::{RouteMessage, RouteScope, RouteType},
};
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_core::{NLM_F_ACK, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
};

use super::{KERNEL_LIMIT, Namespace};

/// A MAC address.
pub(crate) type Mac = [u8; 6];

/// One end of a veth pair.
pub(crate) struct VethEnd<'a> {
    /// Device name.
    pub(crate) name: &'a str,
    /// Interface index; must be free in its namespace.
    pub(crate) index: u32,
    /// MAC address.
    pub(crate) mac: Mac,
    /// Index of the bridge this end is a port of.
    pub(crate) bridge: Option<u32>,
}

/// Netlink requests in one namespace.
#[derive(Clone)]
pub(crate) struct Links {
    handle: Handle,
}

impl Links {
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle }
    }

    /// Sets a link up.
    pub(crate) async fn up(&self, index: u32) -> anyhow::Result<()> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().change(message).execute().await.with_context(|| format!("setting link {index} up"))
    }

    /// Makes a veth pair, both ends up, the other end in namespace `peer_in`.
    pub(crate) async fn add_veth(
        &self,
        near: VethEnd<'_>,
        far: VethEnd<'_>,
        peer_in: &Namespace,
        mtu: u32,
    ) -> anyhow::Result<()> {
        // The kernel refuses to create the far end up: it is not connected yet at that moment.
        let far_message = LinkMessageBuilder::<LinkUnspec>::new()
            .name(far.name)
            .index(far.index)
            .address(far.mac.to_vec())
            .mtu(mtu)
            .setns_by_fd(peer_in.file().as_raw_fd())
            .build();
        let mut builder = LinkVeth::new(near.name, far.name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far_message)))
            .index(near.index)
            .address(near.mac.to_vec())
            .mtu(mtu)
            .up();
        if let Some(bridge) = near.bridge {
            builder = builder.controller(bridge);
        }
        self.handle
            .link()
            .add(builder.build())
            .execute()
            .await
            .with_context(|| format!("making veth {} and {}", near.name, far.name))?;
        peer_in.links().up(far.index).await
    }

    /// Makes a bridge without spanning tree and multicast snooping, up.
    pub(crate) async fn add_bridge(&self, name: &str, index: u32, mac: Mac, mtu: u32) -> anyhow::Result<()> {
        let message = LinkBridge::new(name)
            .mcast_snooping(false)
            .index(index)
            .address(mac.to_vec())
            .mtu(mtu)
            .up()
            .build();
        self.handle.link().add(message).execute().await.with_context(|| format!("making bridge {name}"))
    }

    /// Lets a bridge port send a packet back where it came from.
    pub(crate) async fn hairpin(&self, index: u32) -> anyhow::Result<()> {
        let message = LinkBridgePort::new(index).hairpin(true).build();
        self.handle.link().set_port(message).execute().await.context("setting hairpin mode")
    }

    /// Removes a link (and with it the other end of a veth pair).
    pub(crate) async fn delete(&self, index: u32) -> anyhow::Result<()> {
        self.handle.link().del(index).execute().await.with_context(|| format!("removing link {index}"))
    }

    /// One link.
    pub(crate) async fn get(&self, index: u32) -> anyhow::Result<LinkMessage> {
        let mut links = Box::pin(self.handle.link().get().match_index(index).execute());
        links.try_next().await?.with_context(|| format!("no link {index}"))
    }

    /// Waits until the kernel has activated the link: before that it silently drops what is sent.
    pub(crate) async fn wait_up(&self, index: u32) -> anyhow::Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < KERNEL_LIMIT {
            let link = self.get(index).await?;
            if link.attributes.contains(&LinkAttribute::OperState(State::Up)) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        anyhow::bail!("link {index} did not come up")
    }

    /// Adds an address, usable at once (no duplicate address detection).
    pub(crate) async fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> anyhow::Result<()> {
        // Replacing, because the kernel may have given a link-local address by itself already.
        let mut request = self.handle.address().add(index, address, prefix).replace();
        if address.is_ipv6() {
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.with_context(|| format!("adding address {address}/{prefix}"))
    }

    /// Adds (or replaces) a route to `to`/`prefix`, through a gateway or straight out of the device.
    pub(crate) async fn add_route(
        &self,
        to: IpAddr,
        prefix: u8,
        via: Option<IpAddr>,
        index: u32,
    ) -> anyhow::Result<()> {
        let what = || format!("adding the route to {to}/{prefix}");
        let message = route(to, prefix, via, index).with_context(what)?;
        self.handle.route().add(message).replace().execute().await.with_context(what)
    }

    /// What a gratuitous ARP (or an unsolicited neighbour advertisement) does to a host that hears it and knows the address
    /// as another one's: it is at this MAC address from now on.
    pub(crate) async fn hear_of(&self, index: u32, address: IpAddr, mac: Mac) -> anyhow::Result<()> {
        let request = self.handle.neighbours().add(index, address).link_layer_address(&mac);
        let mut request = request.state(NeighbourState::Stale);
        let message = RouteNetlinkMessage::NewNeighbour(std::mem::take(request.message_mut()));
        let mut message = NetlinkMessage::from(message);
        // Without `NLM_F_CREATE`: who does not know the address learns nothing. To ask for all neighbours first would take a
        // dump, of which a netlink socket does one at a time (`EBUSY`), and pods are made at the same time.
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE;
        let mut answers = self.handle.clone().request(message)?;
        while let Some(answer) = answers.next().await {
            let NetlinkPayload::Error(error) = answer.payload else { continue };
            match error.to_io() {
                _ if error.code.is_none() => {}
                unknown if unknown.kind() == ErrorKind::NotFound => {}
                error => return Err(error).with_context(|| format!("announcing {address}")),
            }
        }
        Ok(())
    }

    /// Adds a permanent neighbour.
    pub(crate) async fn add_neighbour(&self, index: u32, address: IpAddr, mac: Mac) -> anyhow::Result<()> {
        self.handle
            .neighbours()
            .add(index, address)
            .link_layer_address(&mac)
            .replace()
            .execute()
            .await
            .with_context(|| format!("adding neighbour {address}"))
    }
}

/// `ip route … to/prefix [via …] dev index`, link scope when there is no gateway (IPv4).
fn route(to: IpAddr, prefix: u8, via: Option<IpAddr>, index: u32) -> anyhow::Result<RouteMessage> {
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to, prefix)?
        .output_interface(index)
        .kind(RouteType::Unicast);
    if let Some(via) = via {
        builder = builder.gateway(via)?;
    } else if to.is_ipv4() {
        builder = builder.scope(RouteScope::Link);
    }
    Ok(builder.build())
}
