//! Where the rows of a title take place: four endpoints, and clients of every kind.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
};

use lb_tests::{
    lab::Cidr,
    oracle::{Client, Machine},
};

use super::row::{At, Endpoints, Row, Who};
use crate::prelude::*;

/// The node `here`, by position.
const HERE: usize = 0;
/// The node that has no endpoints, in the zone of `here`.
const ELSEWHERE: usize = 1;
/// The node `there`.
const THERE: usize = 2;
/// The host outside that asks.
const OUTSIDE: usize = 0;

/// The places of a title.
pub(crate) struct Site {
    /// Those `here` first.
    pub(crate) endpoints: Vec<PodClient>,
    /// A pod that is no endpoint on every node.
    pods: Vec<PodClient>,
    host: Caller,
    outside: Caller,
    outside_addresses: Vec<IpAddr>,
    pub(crate) machines: Vec<Machine>,
    /// Every address that a packet of a node can come from, by the node's name.
    node_sources: BTreeMap<String, BTreeSet<IpAddr>>,
    /// The name of the node each pod runs on, by the pod's name.
    homes: BTreeMap<String, String>,
}

impl Site {
    /// Starts the pods.
    pub(crate) async fn build(case: &Case) -> Result<Self> {
        let mut endpoints = Vec::new();
        for (number, node) in [HERE, HERE, THERE, THERE].into_iter().enumerate() {
            endpoints.push(case.pod(&format!("endpoint-{number}"), node).await?);
        }
        let mut pods = Vec::new();
        for node in [HERE, ELSEWHERE, THERE] {
            pods.push(case.pod(&format!("client-{node}"), node).await?);
        }
        let homes = endpoints.iter().chain(&pods);
        let homes = homes.map(|pod| (pod.name().to_owned(), pod.pod.node().name().to_owned())).collect();
        let machine = |node: &Node| Machine {
            name: node.name().to_owned(),
            zone: node.zone().map(str::to_owned),
            addresses: node.addresses().to_vec(),
        };
        // A bridged node has the gateway's address, too, and its packets to its own pods come from there.
        let sources = |node: &Node| {
            let gateways = node.pod_cidrs().iter().map(|range| range.nth(1));
            (node.name().to_owned(), node.addresses().iter().copied().chain(gateways).collect())
        };
        route_external_addresses(case)?;
        Ok(Self {
            endpoints,
            pods,
            host: case.host(HERE),
            outside: case.outside(OUTSIDE),
            outside_addresses: case.cluster().lab().client(OUTSIDE).addresses().to_vec(),
            machines: case.nodes().iter().map(machine).collect(),
            node_sources: case.nodes().iter().map(sources).collect(),
            homes,
        })
    }

    /// Waits until agents have heard of everything that was made until now: each tells its own pods of a Service that is
    /// made last.
    pub(crate) async fn caught_up(&self, case: &Case) -> Result<()> {
        let service = case.service("last", json!({"selector": null}))?;
        let endpoint = json!([{"addresses": [self.endpoints[0].ip().to_string()]}]);
        case.slice("last", "last", json!([{"name": "http", "port": 8080, "protocol": "TCP"}]), endpoint)?;
        let (address, name) = (service.cluster(80)?, self.endpoints[0].name());
        for pod in &self.pods {
            case.visible("the last Service of the matrix", async || pod.hostname(address).await, is(name))
                .await?;
        }
        Ok(())
    }

    /// The client of a row, in flesh and for the model.
    pub(crate) fn client(&self, row: &Row) -> Result<(&Caller, Client)> {
        let pod = |pod: &PodClient| -> Result<Client> {
            Ok(Client::Pod {
                node: self.home(pod).to_owned(),
                address: row.family.pick(pod.pod.addresses())?,
            })
        };
        let here = &self.machines[HERE];
        Ok(match row.who {
            Who::PodHere => (self.pods[0].caller(), pod(&self.pods[0])?),
            Who::PodElsewhere => (self.pods[1].caller(), pod(&self.pods[1])?),
            Who::PodThere => (self.pods[2].caller(), pod(&self.pods[2])?),
            Who::Itself => {
                let first = match row.endpoints {
                    Endpoints::ReadyThere | Endpoints::EndingThere => &self.endpoints[2],
                    _ => &self.endpoints[0],
                };
                (first.caller(), pod(first)?)
            }
            Who::Host => (
                &self.host,
                Client::Host { node: here.name.clone(), address: row.family.pick(&here.addresses)? },
            ),
            Who::Outside => (
                &self.outside,
                Client::Outside {
                    through: here.name.clone(),
                    address: row.family.pick(&self.outside_addresses)?,
                },
            ),
        })
    }

    /// The node whose node port a row asks.
    pub(crate) fn node_address(&self, row: &Row, client: &Client) -> Result<IpAddr> {
        let own = match client {
            Client::Pod { node, .. } | Client::Host { node, .. } | Client::Outside { through: node, .. } => {
                node
            }
        };
        let (here, there) = (&self.machines[HERE], &self.machines[THERE]);
        let machine = match row.at {
            At::NodePortOther if *own == here.name => there,
            At::NodePortOther => here,
            _ => self.machines.iter().find(|it| it.name == *own).context("a client's node")?,
        };
        row.family.pick(&machine.addresses)
    }

    /// Whether an address is one of this node's.
    pub(crate) fn is_of_node(&self, address: IpAddr, node: &str) -> bool {
        self.node_sources.get(node).is_some_and(|sources| sources.contains(&address))
    }

    /// The name of the node that a pod runs on.
    pub(crate) fn home(&self, pod: &PodClient) -> &str {
        &self.homes[pod.name()]
    }
}

/// An address for a load balancer or as an external IP, which no other row has.
pub(crate) fn external_address(family: IpFamily) -> IpAddr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    match family {
        IpFamily::V4 => {
            let [high, low] = number.to_be_bytes();
            [198, 19, high, low].into()
        }
        IpFamily::V6 => [0xfd00, 0x198, 0x19, 0, 0, 0, 0, number].into(),
    }
}

/// Tells the host outside that those addresses are behind the node `here`; once for each cluster.
fn route_external_addresses(case: &Case) -> Result<()> {
    static ROUTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut routed = ROUTED.lock().unwrap_or_else(PoisonError::into_inner);
    if !routed.insert(case.cluster().lab().prefix().to_owned()) {
        return Ok(());
    }
    for (family, network, length) in [
        (IpFamily::V4, [198, 19, 0, 0].into(), 16),
        (IpFamily::V6, [0xfd00, 0x198, 0x19, 0, 0, 0, 0, 0].into(), 64),
    ] {
        let via = family.pick(case.node(HERE).addresses())?;
        case.cluster().lab().client(OUTSIDE).add_route(Cidr::new(network, length)?, via)?;
    }
    Ok(())
}
