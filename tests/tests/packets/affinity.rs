//! Session affinity (S-40): a client stays with its endpoint for as long as it keeps coming, and the endpoint is listed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Barrier;
use std::thread;

use anyhow::{Context as _, Result};
use lb_common::layout::{BackendFlags, Class, FrontendKind, Policy, ServiceVerdict};
use lb_common::reason::Reason;
use lb_tests::datapath::case::{Step, World, everywhere};
use lb_tests::datapath::packet::Packet;
use lb_tests::datapath::{BackendSpec, Program, cpus, pin_to};

const TIMEOUT: u32 = 100;
const ENDPOINTS: usize = 8;

/// A Service with affinity, and its endpoints in some classes' lists each.
struct Served {
    service: u32,
    backends: Vec<(u32, BackendSpec)>,
    vip: SocketAddr,
    ports: u16,
}

/// A Service with a cluster IP, all endpoints in the list of class Internal.
fn served(world: &mut World) -> Result<Served> {
    let service = world.datapath.empty_service();
    let mut backends = Vec::new();
    for _ in 0..ENDPOINTS {
        let spec = world.endpoint(8080);
        let spec = BackendSpec { flags: spec.flags | BackendFlags::IN_INTERNAL, ..spec };
        backends.push((world.datapath.backend(service, &spec)?, spec));
    }
    let vip = world.frontend(service, FrontendKind::ClusterIp)?;
    let mut served = Served { service, backends, vip, ports: 10_000 };
    served.list(world, Class::Internal, 0..ENDPOINTS)?;
    world.datapath.policy(service, Policy { affinity_timeout: TIMEOUT, flags: 0 })?;
    world.give_masquerade_address()?;
    Ok(served)
}

impl Served {
    /// Publishes a list of endpoints for a class, and no more than that.
    fn list(&mut self, world: &mut World, class: Class, range: std::ops::Range<usize>) -> Result<()> {
        let indices: Vec<u32> = self.backends[range].iter().map(|(index, _)| *index).collect();
        world.datapath.publish_class(self.service, class, ServiceVerdict::Random, &indices)
    }

    /// Changes the flags of an endpoint.
    fn set_flags(&mut self, world: &mut World, endpoint: usize, flags: u16) -> Result<()> {
        let (index, spec) = &mut self.backends[endpoint];
        spec.flags = flags;
        world.datapath.set_backend(*index, self.service, spec)
    }

    /// The endpoint that a new connection of a client gets.
    fn connect(&mut self, world: &mut World, client: IpAddr, program: Program) -> Result<usize> {
        self.connect_to(world, client, program, self.vip)
    }

    fn connect_to(
        &mut self,
        world: &mut World,
        client: IpAddr,
        program: Program,
        vip: SocketAddr,
    ) -> Result<usize> {
        self.ports += 1;
        let packet = Packet::new(world.protocol, SocketAddr::new(client, self.ports), vip, world.first());
        world.datapath.run(program, &packet.bytes())?;
        let key = lb_tests::datapath::entries::Ends { src: packet.src, dst: vip, protocol: world.protocol };
        let entry = world.datapath.entry(&key)?.context("no connection")?;
        let found = self.backends.iter().position(|(index, _)| *index == entry.backend);
        found.context("no endpoint of the Service")
    }
}

#[test]
fn a_client_stays_with_its_endpoint_and_others_choose_for_themselves() {
    everywhere(|world| {
        let mut served = served(world)?;
        let mut chosen = Vec::new();
        for _ in 0..24 {
            let client = world.address();
            let endpoint = served.connect(world, client, Program::FromPod)?;
            for _ in 0..12 {
                assert_eq!(served.connect(world, client, Program::FromPod)?, endpoint);
            }
            chosen.push(endpoint);
        }
        chosen.sort_unstable();
        chosen.dedup();
        // All 24 alike happens once in 8^23 runs.
        assert!(chosen.len() > 1, "every client at one endpoint");
        Ok(())
    });
}

#[test]
fn all_frontends_and_hooks_share_a_client_s_affinity() {
    everywhere(|world| {
        let mut served = served(world)?;
        for endpoint in 0..ENDPOINTS {
            let all = BackendFlags::IN_INTERNAL | BackendFlags::IN_EXTERNAL | BackendFlags::IN_CLUSTER;
            served.set_flags(world, endpoint, BackendFlags::SERVING | all)?;
        }
        for class in Class::ALL {
            served.list(world, class, 0..ENDPOINTS)?;
        }
        let mut vips = vec![served.vip];
        for kind in [FrontendKind::ExternalIp, FrontendKind::LoadBalancer, FrontendKind::NodePort] {
            vips.push(world.frontend(served.service, kind)?);
        }
        let client = world.address();
        let endpoint = served.connect(world, client, Program::FromPod)?;
        for vip in vips {
            for program in [Program::FromPod, Program::FromNet] {
                for _ in 0..4 {
                    assert_eq!(
                        served.connect_to(world, client, program, vip)?,
                        endpoint,
                        "{vip} {program:?}"
                    );
                }
            }
        }
        Ok(())
    });
}

#[test]
fn every_new_connection_begins_the_time_anew_and_it_ends_to_the_second() {
    everywhere(|world| {
        let mut served = served(world)?;
        let client = world.address();
        let endpoint = served.connect(world, client, Program::FromPod)?;
        // Five times almost as long as it lasts.
        for _ in 0..5 {
            let age = TIMEOUT - 2;
            world.datapath.age_affinity(client, served.service, age)?;
            assert_eq!(served.connect(world, client, Program::FromPod)?, endpoint);
        }
        // Packets of a connection that stands do not count.
        let before = world.datapath.affinity(client, served.service)?.expect("an affinity");
        world.datapath.age_affinity(client, served.service, 50)?;
        let middle =
            Packet::new(world.protocol, SocketAddr::new(client, served.ports), served.vip, world.middle());
        world.datapath.run(Program::FromPod, &middle.bytes())?;
        let after = world.datapath.affinity(client, served.service)?.expect("an affinity");
        assert_eq!(after.last_new, before.last_new - 50);
        // Over: the choice is free, and begins a new time. Only one endpoint is listed now, another than before.
        let other = (endpoint + 1) % ENDPOINTS;
        served.list(world, Class::Internal, other..other + 1)?;
        assert_eq!(served.connect(world, client, Program::FromPod)?, endpoint, "still listed by its bit");
        world.datapath.age_affinity(client, served.service, TIMEOUT)?;
        assert_eq!(served.connect(world, client, Program::FromPod)?, other);
        served.list(world, Class::Internal, 0..ENDPOINTS)?;
        for _ in 0..8 {
            assert_eq!(served.connect(world, client, Program::FromPod)?, other);
        }
        let held = world.datapath.affinity(client, served.service)?.expect("an affinity");
        let (index, spec) = served.backends[other];
        assert_eq!(
            (held.address, held.port, held.backend),
            (spec.endpoint.ip(), spec.endpoint.port(), index)
        );
        Ok(())
    });
}

#[test]
fn an_affinity_ends_when_its_endpoint_leaves_the_list_and_does_not_come_back() {
    everywhere(|world| {
        let mut served = served(world)?;
        let client = world.address();
        let endpoint = served.connect(world, client, Program::FromPod)?;
        let other = (endpoint + 1) % ENDPOINTS;
        // Not ready any more: out of the list, although it serves on.
        served.list(world, Class::Internal, other..other + 1)?;
        served.set_flags(world, endpoint, BackendFlags::SERVING)?;
        assert_eq!(served.connect(world, client, Program::FromPod)?, other);
        // Back in the list: the client has another by now.
        served.set_flags(world, endpoint, BackendFlags::SERVING | BackendFlags::IN_INTERNAL)?;
        served.list(world, Class::Internal, 0..ENDPOINTS)?;
        for _ in 0..8 {
            assert_eq!(served.connect(world, client, Program::FromPod)?, other);
        }
        // The row becomes another endpoint's, then another Service's.
        let spec = world.endpoint(8080);
        let flags = BackendFlags::SERVING | BackendFlags::IN_INTERNAL;
        let (index, _) = served.backends[other];
        world.datapath.set_backend(index, served.service, &BackendSpec { flags, ..spec })?;
        served.list(world, Class::Internal, endpoint..endpoint + 1)?;
        assert_eq!(served.connect(world, client, Program::FromPod)?, endpoint);
        let (index, spec) = served.backends[endpoint];
        world.datapath.set_backend(index, served.service + 100, &spec)?;
        let last = (endpoint + 2) % ENDPOINTS;
        served.list(world, Class::Internal, last..last + 1)?;
        assert_eq!(served.connect(world, client, Program::FromPod)?, last);
        Ok(())
    });
}

#[test]
fn an_affinity_counts_only_with_the_bit_of_the_connection_s_class() {
    everywhere(|world| {
        let mut served = served(world)?;
        let vip = world.frontend(served.service, FrontendKind::NodePort)?;
        // Endpoint 0 is in class Internal alone, endpoint 1 in class External alone.
        served.set_flags(world, 0, BackendFlags::SERVING | BackendFlags::IN_INTERNAL)?;
        served.set_flags(world, 1, BackendFlags::SERVING | BackendFlags::IN_EXTERNAL)?;
        served.list(world, Class::Internal, 0..1)?;
        served.list(world, Class::External, 1..2)?;
        let client = world.address();
        for _ in 0..3 {
            assert_eq!(served.connect(world, client, Program::FromNet)?, 0);
            assert_eq!(served.connect_to(world, client, Program::FromNet, vip)?, 1);
        }
        // In both: the one it had last.
        served.set_flags(
            world,
            1,
            BackendFlags::SERVING | BackendFlags::IN_EXTERNAL | BackendFlags::IN_INTERNAL,
        )?;
        assert_eq!(served.connect(world, client, Program::FromNet)?, 1);
        Ok(())
    });
}

#[test]
fn a_refused_client_has_no_affinity_and_none_is_kept_without_a_timeout() {
    everywhere(|world| {
        let mut served = served(world)?;
        let client = world.address();
        world.datapath.publish(served.service, ServiceVerdict::Reject, &[])?;
        let packet = Packet::new(world.protocol, SocketAddr::new(client, 9_999), served.vip, world.first());
        world.always(&Step::refused("refused", &packet, Reason::NoEndpoint, Some(served.service)))?;
        assert!(world.datapath.affinity(client, served.service)?.is_none());
        served.list(world, Class::Internal, 0..ENDPOINTS)?;
        world.datapath.policy(served.service, Policy::default())?;
        let mut chosen: Vec<usize> = Vec::new();
        for _ in 0..64 {
            chosen.push(served.connect(world, client, Program::FromPod)?);
        }
        chosen.dedup();
        // Sixty-four times the same of eight happens once in 8^63 runs.
        assert!(chosen.len() > 1);
        assert!(world.datapath.affinity(client, served.service)?.is_none());
        Ok(())
    });
}

#[test]
fn connections_that_begin_on_two_cpus_at_once_go_to_one_endpoint() {
    let cpus = cpus();
    everywhere(|world| {
        let served = served(world)?;
        let clients: Vec<IpAddr> = (0..200).map(|number| world.host(20 + number)).collect();
        let (protocol, first, vip) = (world.protocol, world.first(), served.vip);
        let (datapath, barrier) = (&world.datapath, Barrier::new(2));
        let begin = |cpu: usize, port: u16| {
            pin_to(cpu);
            for client in &clients {
                let packet = Packet::new(protocol, SocketAddr::new(*client, port), vip, first).bytes();
                barrier.wait();
                datapath.run(Program::FromPod, &packet).expect("a run");
            }
        };
        thread::scope(|scope| {
            let begin = &begin;
            scope.spawn(|| begin(cpus[0], 10_001));
            scope.spawn(|| begin(cpus[cpus.len() - 1], 10_002));
        });
        for client in clients {
            let mut backends = Vec::new();
            for port in [10_001, 10_002] {
                let src = SocketAddr::new(client, port);
                let key = lb_tests::datapath::entries::Ends { src, dst: vip, protocol };
                backends.push(world.datapath.entry(&key)?.context("no connection")?.backend);
            }
            assert_eq!(backends[0], backends[1], "{client}");
            let held = world.datapath.affinity(client, served.service)?.context("no affinity")?;
            assert_eq!(held.backend, backends[0], "{client}");
        }
        Ok(())
    });
}
