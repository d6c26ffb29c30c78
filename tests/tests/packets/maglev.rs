//! Maglev: the client's hash chooses, the same wherever and whenever it is met.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use lb_common::address::{Ip4, Ip6};
use lb_common::byteorder::Be16;
use lb_common::layout::{BackendFlags, Class, FrontendKind, Policy, ServiceVerdict};
use lb_common::proto;
use lb_common::tuple::client_hash;
use lb_tests::datapath::Program;
use lb_tests::datapath::case::{World, everywhere_with};
use lb_tests::datapath::entries::Ends;
use lb_tests::datapath::packet::Packet;

const ENDPOINTS: u32 = 5;
/// No multiple of the endpoints.
const SLOTS: u32 = 61;

/// A Service with a table that lists its endpoints in an order of its own for each class.
struct Served {
    service: u32,
    backends: Vec<u32>,
    vips: Vec<(FrontendKind, SocketAddr)>,
}

fn table(class: Class) -> Vec<usize> {
    (0..SLOTS).map(|slot| ((slot * 7 + class as u32 * 3) % SLOTS % ENDPOINTS) as usize).collect()
}

fn served(world: &mut World) -> Result<Served> {
    let service = world.datapath.empty_service();
    let mut backends = Vec::new();
    for _ in 0..ENDPOINTS {
        let mut spec = world.endpoint(8080);
        spec.flags |= BackendFlags::IN_INTERNAL | BackendFlags::IN_EXTERNAL | BackendFlags::IN_CLUSTER;
        backends.push(world.datapath.backend(service, &spec)?);
    }
    for class in Class::ALL {
        let slots: Vec<u32> = table(class).into_iter().map(|at| backends[at]).collect();
        world.datapath.publish_class(service, class, ServiceVerdict::Maglev, &slots)?;
    }
    use FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort};
    let mut vips = Vec::new();
    for kind in [ClusterIp, ExternalIp, LoadBalancer, NodePort] {
        vips.push((kind, world.frontend(service, kind)?));
    }
    world.give_masquerade_address()?;
    Ok(Served { service, backends, vips })
}

impl Served {
    /// The position of the endpoint that a new connection gets.
    fn connect(
        &self,
        world: &mut World,
        client: SocketAddr,
        vip: SocketAddr,
        program: Program,
    ) -> Result<usize> {
        let packet = Packet::new(world.protocol, client, vip, world.first());
        world.datapath.run(program, &packet.bytes())?;
        let key = Ends { src: packet.src, dst: vip, protocol: world.protocol };
        let entry = world.datapath.entry(&key)?.context("no connection")?;
        self.backends.iter().position(|index| *index == entry.backend).context("no endpoint of the Service")
    }
}

/// The endpoint that the table of a class has for a client's hash.
fn meant(class: Class, client: IpAddr, port: u16) -> usize {
    let port = Be16::new(port);
    let hash = match client {
        IpAddr::V4(address) => client_hash(Ip4::from(address), port),
        IpAddr::V6(address) => client_hash(Ip6::from(address), port),
    };
    table(class)[((u64::from(hash) * u64::from(SLOTS)) >> 32) as usize]
}

/// The node forgets all connections.
fn forget(world: &mut World) -> Result<()> {
    world.datapath.forget_flows()?;
    world.datapath.advance_epoch()
}

const HOOKS: [(Program, lb_common::layout::Client); 2] = [
    (Program::FromPod, lb_common::layout::Client::Pod),
    (Program::FromNet, lb_common::layout::Client::Outside),
];

#[test]
fn the_hash_of_the_client_s_address_and_port_chooses_at_every_hook_and_frontend() {
    everywhere_with(&[proto::TCP, proto::UDP, proto::SCTP], |world| {
        let served = served(world)?;
        let client = world.address();
        let mut chosen = [0_u32; ENDPOINTS as usize];
        for port in (20_000..20_040).chain([1, 1023, u16::MAX]) {
            for (kind, vip) in &served.vips {
                for (program, who) in HOOKS {
                    let from = SocketAddr::new(client, port);
                    let got = served.connect(world, from, *vip, program)?;
                    assert_eq!(got, meant(Class::of(*kind, who), client, port), "{from} {vip} {program:?}");
                    chosen[got] += 1;
                    // Whoever lost its connection, to eviction or with the node, chooses the same again.
                    forget(world)?;
                    assert_eq!(served.connect(world, from, *vip, program)?, got);
                    // The other hook sees another client of the same address.
                    forget(world)?;
                }
            }
        }
        assert!(chosen.iter().all(|count| *count > 0), "{chosen:?}");
        Ok(())
    });
}

#[test]
fn with_affinity_all_connections_of_a_client_hash_alike() {
    everywhere_with(&[proto::TCP, proto::UDP], |world| {
        let served = served(world)?;
        world.datapath.policy(served.service, Policy { affinity_timeout: 100, flags: 0 })?;
        let vip = served.vips[0].1;
        let mut chosen = Vec::new();
        for _ in 0..24 {
            let client = world.address();
            let wanted = meant(Class::Internal, client, 0);
            for port in 20_000..20_004 {
                let from = SocketAddr::new(client, port);
                assert_eq!(served.connect(world, from, vip, Program::FromPod)?, wanted);
            }
            // Also when the affinity is over.
            world.datapath.age_affinity(client, served.service, 100)?;
            assert_eq!(
                served.connect(world, SocketAddr::new(client, 30_000), vip, Program::FromPod)?,
                wanted
            );
            chosen.push(wanted);
        }
        chosen.sort_unstable();
        chosen.dedup();
        assert!(chosen.len() > 1, "every client at one endpoint");
        Ok(())
    });
}
