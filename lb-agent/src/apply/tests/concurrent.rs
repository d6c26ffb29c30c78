//! Readers on other threads, as the programs are on other CPUs: whatever is used again, moved or switched over
//! meanwhile, a Service leads to its own endpoints.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lb_common::address::{Address, Ip4};
use lb_common::byteorder::Be16;
use lb_common::layout::{Class, Client, FrontendKey, FrontendValue, V4};
use lb_common::lookup::{admits, choose, find, policy};
use lb_common::{hash, proto};

use super::model::World;
use super::worlds::{apply, cluster_ip, difference};
use crate::apply::Applier;
use crate::dataplane::memory::{Grace, HostTables, TableSizes, VecMemory};
use crate::model::{Cidr, Family, ObjectName, Protocol};
use crate::plan::{
    Algorithm, ClassPlan, EndpointPlan, ExternalPlan, Frontend, FrontendKind, ServicePlan, ServicePortKey,
    ServicePortPlan, Verdict,
};

/// As tight as the histories below allow: rows, slots and cells are used again at once.
const SIZES: TableSizes = TableSizes { frontend_buckets: 16, services: 72, slot_words: 160, backends: 140 };
const SERVICES: u8 = 8;
const READERS: usize = 2;

/// A grace period as RCU has it: every reader that is inside has to come out.
#[derive(Clone, Default)]
struct Readers {
    /// Odd while the reader is inside.
    inside: Arc<[AtomicU64; READERS]>,
    graces: Arc<AtomicU64>,
}

impl Readers {
    fn read<T>(&self, reader: usize, section: impl FnOnce() -> T) -> T {
        /// Leaves also when the section panics, or the writer would wait for ever.
        struct Leave<'a>(&'a AtomicU64);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        self.inside[reader].fetch_add(1, Ordering::SeqCst);
        let _leave = Leave(&self.inside[reader]);
        section()
    }
}

impl Grace for Readers {
    fn wait(&self) {
        self.graces.fetch_add(1, Ordering::SeqCst);
        for reader in self.inside.iter() {
            let seen = reader.load(Ordering::SeqCst);
            while seen % 2 == 1 && reader.load(Ordering::SeqCst) == seen {
                thread::yield_now();
            }
        }
    }
}

/// The load balancer address of a Service, for clients whose address carries its number.
fn vip(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, number)
}

/// Now few, now many of them; always one that has the Service's clients.
fn ranges(number: u8, seed: u64) -> Vec<Cidr> {
    let others = (0..seed as u8 % 3).map(|at| Cidr::host(Ipv4Addr::new(172, 16, number, at).into()));
    let own = Cidr::new(Ipv4Addr::new(192, 168, number, 0).into(), 24 + (seed >> 8) as u8 % 2);
    others.chain(own).collect()
}

/// Service `number`; its endpoints carry its number in their address.
fn service(number: u8, seed: u64) -> ServicePlan {
    let service = ObjectName::new("default", &format!("s{number}"));
    let hosts: BTreeMap<u8, ()> = (0..1 + seed % 7).map(|at| (hash::mix2(seed, at) as u8 % 16, ())).collect();
    let endpoint = |host: &u8| EndpointPlan {
        address: Ipv4Addr::new(10, 1, number, *host).into(),
        port: 8080,
        local: false,
        serving: true,
    };
    let address = cluster_ip(Family::V4, number);
    let port = ServicePortPlan {
        key: ServicePortKey {
            service: service.clone(),
            port_name: "".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        },
        endpoints: hosts.keys().map(endpoint).collect(),
        internal: ClassPlan {
            frontends: vec![Frontend { address, port: 80, kind: FrontendKind::ClusterIp }],
            verdict: Verdict::Balance((0..hosts.len() as u32).collect()),
        },
        external: Some(ExternalPlan {
            frontends: vec![Frontend {
                address: vip(number).into(),
                port: 80,
                kind: FrontendKind::LoadBalancer,
            }],
            verdict: Verdict::Balance(vec![0]),
            inside: Verdict::Balance((0..hosts.len() as u32).collect()),
            preserve_source: true,
            source_ranges: ranges(number, seed),
        }),
        affinity_timeout: None,
        algorithm: Algorithm::Random,
    };
    ServicePlan { service, created: None, ports: vec![port], health_check: None }
}

fn look_up(memory: &VecMemory, number: u8, random: u32) {
    let tables = HostTables(memory);
    let IpAddr::V4(address) = cluster_ip(Family::V4, number) else { unreachable!("asked for IPv4") };
    for (address, kind) in [(address, FrontendKind::ClusterIp), (vip(number), FrontendKind::LoadBalancer)] {
        let key = FrontendKey::service(Ip4::from(address), Be16::new(80), proto::TCP);
        let value = find::<V4, _>(&tables, &key).expect("the Service is always there");
        let value = FrontendValue::decode(value);
        assert_eq!(value.kind, kind);
        for client in [Client::Pod, Client::Outside] {
            let class = Class::of(kind, client);
            let choice = choose::<V4, _>(&tables, value.service, class, |_| random)
                .expect("it always has an endpoint");
            let IpAddr::V4(found) = choice.backend.address.to_ip() else { unreachable!("an IPv4 backend") };
            assert_eq!(found.octets()[..3], [10, 1, number], "Service {number} led to {found}");
            let admits = |number, host| {
                let source = Ip4::from(Ipv4Addr::new(192, 168, number, host));
                admits::<V4, _>(&tables, value, policy(&tables, value.service), client, source)
            };
            assert!(admits(number, 7), "Service {number} has shut its clients out");
            let foreign = kind == FrontendKind::LoadBalancer && admits(number % SERVICES + 1, 7);
            assert!(!foreign, "Service {number} has let a client of another in");
        }
    }
}

/// Ends the readers, also when the writer panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn readers_are_led_to_the_right_service_through_every_change() {
    let memory = Arc::new(VecMemory::new(SIZES));
    let readers = Readers::default();
    let mut applier = Applier::adopt(memory.clone(), readers.clone()).unwrap();
    let world = |step: u64| -> World {
        // The first half stays for ever, the others come and go and make the first half's frontends move.
        let there = |number: &u8| *number <= SERVICES || hash::mix2(step, u64::from(*number)) & 1 == 0;
        (1..=2 * SERVICES)
            .filter(there)
            .map(|number| service(number, hash::mix2(step, u64::from(number))))
            .map(|plan| (plan.service.clone(), plan))
            .collect()
    };
    let mut before = world(0);
    apply(&mut applier, difference(&World::new(), &before));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = |number: usize| {
            let (memory, readers, done) = (&memory, &readers, &done);
            move || {
                let mut lookups = 0u64;
                while !done.load(Ordering::Relaxed) || lookups < 10_000 {
                    let random = hash::mix2(number as u64, lookups);
                    let service = 1 + (random >> 32) as u8 % SERVICES;
                    readers.read(number, || look_up(memory, service, random as u32));
                    lookups += 1;
                }
            }
        };
        let threads: Vec<_> = (0..READERS).map(|number| scope.spawn(reader(number))).collect();
        let _done = Done(&done);
        let deadline = Instant::now() + Duration::from_secs(3);
        for step in 1..2000 {
            if Instant::now() > deadline || threads.iter().any(thread::ScopedJoinHandle::is_finished) {
                break;
            }
            let after = world(step);
            apply(&mut applier, difference(&before, &after));
            before = after;
        }
    });
    assert!(readers.graces.load(Ordering::SeqCst) > 10, "hardly anything was used again");
}
