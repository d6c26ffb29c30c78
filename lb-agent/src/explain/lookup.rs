//! The service side's answer about an address: the look-ups of the programs ([`lb_common::lookup`]), on the same tables.

use std::net::IpAddr;

use lb_common::address::{Address, Ip4, Ip6};
use lb_common::byteorder::Be16;
use lb_common::layout::{Class, Client, Family, FrontendValue, Policy, V4, V6};
use lb_common::lookup::{self, Unserved};

use crate::dataplane::Ends;
use crate::dataplane::memory::{HostTables, TableMemory};

/// What the tables say about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LookedUp {
    /// The Service port, where there is one.
    pub(super) frontend: Option<FrontendValue>,
    /// Whose the address is otherwise.
    pub(super) unserved: Unserved,
    /// Nobody in order sends from that source.
    pub(super) spoofed: bool,
    /// The Service's policy.
    pub(super) policy: Policy,
    /// Source ranges let the client in (S-34).
    pub(super) admitted: bool,
    /// The client's class at that frontend.
    pub(super) class: Class,
    /// Node ports are served at the destination address (S-35).
    pub(super) node_address: bool,
}

/// Looks a packet of a kind of client up.
pub(super) fn look_up<M: TableMemory>(memory: &M, ends: &Ends, client: Client) -> LookedUp {
    match (ends.from.ip(), ends.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            of_family::<V4, M>(memory, Ip4::from(from), Ip4::from(to), ends, client)
        }
        (from, to) => {
            let six = |address: IpAddr| match address {
                IpAddr::V4(address) => Ip6::from(address.to_ipv6_mapped()),
                IpAddr::V6(address) => Ip6::from(address),
            };
            of_family::<V6, M>(memory, six(from), six(to), ends, client)
        }
    }
}

fn of_family<F: Family, M: TableMemory>(
    memory: &M,
    from: F::Addr,
    to: F::Addr,
    ends: &Ends,
    client: Client,
) -> LookedUp {
    let tables = HostTables(memory);
    let port = Be16::new(ends.to.port());
    // The node's loopback is a node port address (S-36) for all of 127.0.0.0/8, and for sockets only.
    let is_host = matches!(client, Client::Host);
    let frontend =
        lookup::frontend::<F, _>(&tables, to, port, ends.protocol).filter(|_| is_host || !to.is_loopback());
    let service = frontend.map_or(0, |frontend| frontend.service);
    let policy = lookup::policy(&tables, service);
    LookedUp {
        frontend,
        unserved: lookup::classify_address::<F, _>(&tables, to),
        spoofed: !is_host && lookup::is_spoofed::<F, _>(&tables, from, to, matches!(client, Client::Outside)),
        policy,
        admitted: frontend
            .is_none_or(|frontend| lookup::admits::<F, _>(&tables, frontend, policy, client, from)),
        class: frontend.map_or(Class::Internal, |frontend| Class::of(frontend.kind, client)),
        node_address: lookup::is_node_address::<F, _>(&tables, to),
    }
}
