//! A made-up cluster: Services and EndpointSlices as the watches hand them over.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use lb_agent::index::{Change, Event, StoreEvent};
use lb_agent::model::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, Family, NodeFacts, ObjectName, Protocol, Rare,
    Service, ServicePort, ServiceType, TrafficPolicy,
};
use lb_agent::plan::Algorithm;

/// So many Services with one port, with so many endpoints each, in slices of a hundred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// Number of Services.
    pub services: u32,
    /// Endpoints of each.
    pub endpoints: u32,
    /// How connections choose.
    pub algorithm: Algorithm,
}

/// Endpoints of a slice, as the controller writes them by default.
const SLICE: u32 = 100;

impl World {
    /// Ten thousand Services, a quarter of a million endpoints.
    pub const MANY: Self = Self { services: 10_000, endpoints: 25, algorithm: Algorithm::Random };
    /// Fifty thousand Services, one endpoint each.
    pub const FIFTY: Self = Self { services: 50_000, endpoints: 1, algorithm: Algorithm::Random };

    fn name(number: u32) -> ObjectName {
        ObjectName { namespace: shared("namespace", number), name: format!("service-{number}").into() }
    }

    /// The cluster IP of a Service.
    pub fn cluster_ip(number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(0x0a60_0001 + number)
    }

    /// An endpoint of a Service, the `generation`-th at its place.
    pub fn endpoint(&self, number: u32, at: u32, generation: u32) -> Ipv4Addr {
        let places = self.services * self.endpoints;
        Ipv4Addr::from_bits(0x0a80_0000 + (generation % 8) * places + number * self.endpoints + at)
    }

    /// A Service.
    pub fn service(&self, number: u32) -> Service {
        Service {
            name: Self::name(number),
            created: Some(i64::from(number)),
            service_type: ServiceType::ClusterIp,
            cluster_ips: vec![Self::cluster_ip(number).into()].into(),
            external_ips: Rare::default(),
            ingress: Rare::default(),
            ports: vec![ServicePort {
                name: shared("http", 0),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: 0,
            }]
            .into(),
            affinity_timeout: None,
            algorithm: self.algorithm,
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            source_ranges: Rare::default(),
            health_check_node_port: 0,
        }
    }

    /// The slices of a Service. One endpoint is the `generation`-th at its place: of two generations, one differs.
    pub fn slices(&self, number: u32, generation: u32) -> impl Iterator<Item = EndpointSlice> {
        let world = *self;
        (0..self.endpoints.div_ceil(SLICE)).map(move |slice| {
            let first = slice * SLICE;
            let last = world.endpoints.min(first + SLICE);
            let endpoint = |at: u32| {
                let changed = if at == 0 { generation } else { 0 };
                Endpoint {
                    address: IpAddr::V4(world.endpoint(number, at, changed)),
                    conditions: Conditions { ready: true, serving: true, terminating: false },
                    node_name: Some(shared("node", number + at)),
                    zone_hints: Rare::default(),
                    node_hints: Rare::default(),
                }
            };
            let service = Self::name(number);
            EndpointSlice {
                name: ObjectName {
                    namespace: service.namespace.clone(),
                    name: format!("service-{number}-{slice}").into(),
                },
                service,
                family: Family::V4,
                ports: vec![EndpointPort { name: shared("http", 0), protocol: Protocol::Tcp, port: 8080 }]
                    .into(),
                endpoints: (first..last).map(endpoint).collect(),
            }
        })
    }

    /// What the watches say first: everything.
    pub fn events(&self) -> [Event; 3] {
        let services = (0..self.services).map(|number| self.service(number)).collect();
        let slices = (0..self.services).flat_map(|number| self.slices(number, 0)).collect();
        [
            Event::now(Change::Node(NodeFacts { name: "node-0".into(), zone: None })),
            Event::now(Change::Services(StoreEvent::Reset(services))),
            Event::now(Change::Slices(StoreEvent::Reset(slices))),
        ]
    }

    /// An endpoint of a Service is replaced by another.
    pub fn change(&self, number: u32, generation: u32) -> Event {
        let slice = self.slices(number, generation).next().expect("a Service with endpoints");
        Event::now(Change::Slices(StoreEvent::Apply(slice)))
    }
}

/// Names are shared, as the agent's own conversion shares them: a hundred of each kind.
fn shared(kind: &'static str, number: u32) -> Arc<str> {
    thread_local! {
        static NAMES: RefCell<BTreeMap<(&'static str, u32), Arc<str>>> = RefCell::default();
    }
    let number = number % 100;
    NAMES.with_borrow_mut(|names| {
        names.entry((kind, number)).or_insert_with(|| format!("{kind}-{number}").into()).clone()
    })
}
