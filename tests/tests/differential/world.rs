//! Addresses and tables of a plan, for the programs and for the model.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use lb_common::layout::{self, BackendFlags, FrontendKind, Policy, ServiceVerdict};
use lb_tests::datapath::packet::Mac;
use lb_tests::datapath::{BackendSpec, Datapath, Program};
use lb_tests::model::{Backend, Frontend, INTERFACE, Kind, Model, Published, Service};

use crate::plan::{ENDPOINTS, Lists, PODS, Plan, Who};

/// Seconds of affinity: no multiple of a step's waiting time, so that it is never unclear whether it is over.
const AFFINITY: u32 = 10;
/// Port of the endpoints.
pub(crate) const ENDPOINT_PORT: u16 = 8080;

/// An address of a network of the plan's family.
pub(crate) fn host(v6: bool, network: u8, number: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0, 0, network.into(), 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(10, 0, network, number).into()
    }
}

/// The address of a pod or of a host beyond the network.
pub(crate) fn address(v6: bool, number: u8) -> IpAddr {
    host(v6, if number < PODS { 1 } else { 2 }, number + 1)
}

/// The node's address.
pub(crate) fn node(v6: bool) -> IpAddr {
    host(v6, 3, 1)
}

/// The MAC address that an address sends from: its own, or a router's.
pub(crate) fn mac(address: IpAddr) -> Mac {
    let last = match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    };
    [2, 0, 0, 0, 2, last]
}

/// True for the address of a pod of this node.
pub(crate) fn is_pod(address: IpAddr) -> bool {
    (0..PODS).any(|number| self::address(address.is_ipv6(), number) == address)
}

/// Where the packets of an address come in.
pub(crate) fn entrance(address: IpAddr) -> Program {
    if is_pod(address) { Program::FromPod } else { Program::FromNet }
}

/// Where packets leave to an address.
pub(crate) fn exit(address: IpAddr) -> Program {
    if is_pod(address) { Program::ToPod } else { Program::ToNet }
}

/// Where a frontend of a Service is.
pub(crate) fn vip(plan: &Plan, service: u8, frontend: u8) -> (SocketAddr, u8) {
    let number = usize::from(service) % plan.services.len();
    let service = &plan.services[number];
    let kind = service.kinds[usize::from(frontend) % service.kinds.len()];
    (place(plan.v6, number as u16, kind), service.protocol)
}

fn place(v6: bool, number: u16, kind: Kind) -> SocketAddr {
    match kind {
        // Two Services share a cluster IP, all share the others.
        Kind::ClusterIp => SocketAddr::new(host(v6, 96, 1 + number as u8 / 2), 80 + number),
        Kind::ExternalIp => SocketAddr::new(host(v6, 97, 1), 80 + number),
        Kind::LoadBalancer => SocketAddr::new(host(v6, 97, 2), 80 + number),
        Kind::NodePort => SocketAddr::new(node(v6), 30_080 + number),
    }
}

/// The address that a packet is from or to.
pub(crate) fn who(plan: &Plan, who: Who) -> IpAddr {
    let v6 = plan.v6;
    match who {
        Who::Host(number) => address(v6, number),
        Who::Vip(service, frontend) => vip(plan, service, frontend).0.ip(),
        Who::Node => node(v6),
        Who::Unallocated => host(v6, 96, 200),
        Who::Foreign => host(v6, 98, 1),
        Who::Multicast if v6 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
        Who::Multicast => Ipv4Addr::new(224, 0, 0, 1).into(),
        Who::Unspecified if v6 => Ipv6Addr::UNSPECIFIED.into(),
        Who::Unspecified => Ipv4Addr::UNSPECIFIED.into(),
        Who::Loopback if v6 => Ipv6Addr::LOCALHOST.into(),
        Who::Loopback => Ipv4Addr::LOCALHOST.into(),
    }
}

/// Writes the tables of a plan, and tells the model.
pub(crate) fn write(plan: &Plan, datapath: &mut Datapath, model: &mut Model) -> Result<()> {
    let v6 = plan.v6;
    let range = (host(v6, 96, 0), if v6 { 64 } else { 24 });
    datapath.range(range.0, range.1)?;
    model.tables.ranges.push(range);
    datapath.node_address(node(v6))?;
    model.tables.node_addresses.push(node(v6));
    model.tables.masquerade = plan.masquerades.then(|| node(v6));
    match model.tables.masquerade {
        Some(IpAddr::V4(address)) => datapath.masquerade(0, Some(address), None)?,
        Some(IpAddr::V6(address)) => datapath.masquerade(0, None, Some(address))?,
        None => datapath.masquerade(0, None, None)?,
    }
    for (number, service) in plan.services.iter().enumerate() {
        let index = datapath.empty_service();
        for endpoint in 0..ENDPOINTS {
            let endpoint = SocketAddr::new(address(v6, endpoint), ENDPOINT_PORT);
            let row = datapath.backend(index, &BackendSpec::serving(endpoint))?;
            let pod = is_pod(endpoint.ip());
            let last = mac(endpoint.ip())[5];
            model.tables.backends.push(Backend {
                index: row,
                service: index,
                endpoint,
                serving: true,
                listed: [false; 3],
                // One pod's way is not known, one is reached as if by a network card.
                interface: if pod && last != 2 { INTERFACE } else { 0 },
                neighbour: pod && last == 3,
                mac: [2, 0, 0, 0, 1, last],
            });
        }
        let preserve_source = service.preserve_source;
        let affinity = if service.affinity { AFFINITY } else { 0 };
        // Some pods, one host beyond.
        let sources = service.sources.then(|| {
            let (pods, one) = if v6 { (127, 128) } else { (31, 32) };
            vec![(host(v6, 1, 2), pods), (address(v6, PODS), one)]
        });
        let mut flags = 0;
        if preserve_source {
            flags |= Policy::PRESERVE_SOURCE;
        }
        if let Some(sources) = &sources {
            flags |= Policy::SOURCE_RANGES;
            datapath.source_ranges(index, sources)?;
        }
        datapath.policy(index, Policy { affinity_timeout: affinity, flags })?;
        let lists = [Published::Reject, Published::Reject, Published::Reject];
        model.tables.services.push(Service { index, lists, affinity, preserve_source, sources });
        for kind in &service.kinds {
            let vip = place(v6, number as u16, *kind);
            let of = match kind {
                Kind::ClusterIp => FrontendKind::ClusterIp,
                Kind::ExternalIp => FrontendKind::ExternalIp,
                Kind::LoadBalancer => FrontendKind::LoadBalancer,
                Kind::NodePort => FrontendKind::NodePort,
            };
            datapath.frontend(vip, service.protocol, index, of)?;
            let protocol = service.protocol;
            model.tables.frontends.push(Frontend { vip, protocol, kind: *kind, service: index });
        }
        publish(index, &service.lists, datapath, model)?;
    }
    datapath.advance_epoch()
}

/// Changes the lists of a Service, and tells the model.
pub(crate) fn publish(index: u32, lists: &Lists, datapath: &mut Datapath, model: &mut Model) -> Result<()> {
    let mut rows = Vec::new();
    for backend in model.tables.backends.iter_mut().filter(|backend| backend.service == index) {
        let bit = 1 << rows.len();
        backend.serving = lists.serving & bit != 0;
        backend.listed = lists.listed.map(|list| list & bit != 0);
        rows.push(backend.index);
        let mut flags = 0;
        for (is, flag) in [
            (backend.serving, BackendFlags::SERVING),
            (backend.neighbour, BackendFlags::NEIGHBOUR),
            (backend.interface != 0 && !backend.neighbour, BackendFlags::LOCAL),
            (backend.listed[0], BackendFlags::IN_INTERNAL),
            (backend.listed[1], BackendFlags::IN_EXTERNAL),
            (backend.listed[2], BackendFlags::IN_CLUSTER),
        ] {
            flags |= if is { flag } else { 0 };
        }
        let Backend { endpoint, interface, mac, .. } = *backend;
        datapath.set_backend(backend.index, index, &BackendSpec { endpoint, flags, interface, mac })?;
    }
    let service = model.tables.services.iter_mut().find(|service| service.index == index);
    let service = service.expect("a Service that there is");
    for (number, class) in layout::Class::ALL.into_iter().enumerate() {
        let listed: Vec<u32> = (0..ENDPOINTS)
            .filter(|bit| lists.listed[number] >> bit & 1 != 0)
            .map(|bit| rows[usize::from(bit)])
            .collect();
        let (verdict, list) = match (listed.is_empty(), lists.drops) {
            (false, _) => (ServiceVerdict::Random, Published::OneOf(listed.clone())),
            (true, true) => (ServiceVerdict::Drop, Published::Drop),
            (true, false) => (ServiceVerdict::Reject, Published::Reject),
        };
        datapath.publish_class(index, class, verdict, &listed)?;
        service.lists[number] = list;
    }
    for frontend in &model.tables.frontends {
        let address = frontend.vip.ip();
        let alive = |other: &Frontend| {
            let list = &model.tables.service(other.service).lists[0];
            let cluster_ip = other.kind == Kind::ClusterIp && other.vip.ip() == address;
            cluster_ip && matches!(list, Published::OneOf(_))
        };
        if frontend.kind == Kind::ClusterIp {
            datapath.has_endpoints(address, model.tables.frontends.iter().any(alive))?;
        }
    }
    datapath.advance_epoch()
}
