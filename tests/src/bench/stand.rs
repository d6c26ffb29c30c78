//! Nodes side by side, each with a client and a server of its own and Services served in a way of its own: what is compared
//! stands all the time, and measuring one after another takes no time in between.

use std::cmp::Reverse;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::balancer::{Balancer, DIRECT_PORT, SERVER_PORTS};
use super::traffic::{Kind, Measured, Order, Place, Worker};
use super::waited;
use crate::lab::{Family, Lab, Pod, Shape};

/// CPUs of clients and of servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// Of clients.
    pub client: usize,
    /// Of servers.
    pub server: usize,
}

impl Cpus {
    /// Both on the first one.
    pub fn same() -> Self {
        Self { client: 0, server: 0 }
    }
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// In a pod.
    Pod,
    /// On the node itself.
    Node,
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "pod to pod",
            Self::Node => "node to pod",
        })
    }
}

/// A node with its way of serving.
pub struct Entrant {
    /// The way.
    pub balancer: Balancer,
    server: Pod,
    in_pod: Worker,
    on_node: Worker,
    _serving: Worker,
}

/// All of them.
pub struct Stand {
    /// In the order given.
    pub entrants: Vec<Entrant>,
    _lab: Lab,
}

impl Stand {
    /// Makes a node for each of the balancers and installs it there.
    ///
    /// # Errors
    /// Not root, or something is missing.
    pub fn build(balancers: &[Balancer], cpus: Cpus, progress: &(dyn Fn(&str) + Sync)) -> Result<Self> {
        let nodes = u32::try_from(balancers.len())?;
        let (lab, pods) = waited(format!("{nodes} nodes"), || -> Result<_> {
            let lab = Lab::builder().shape(Shape::Routed).family(Family::V4).nodes(nodes).build()?;
            let pods = lab.nodes().iter().map(|node| Ok((node.pod("client")?, node.pod("server")?)));
            let pods = pods.collect::<Result<Vec<(Pod, Pod)>>>()?;
            Ok((lab, pods))
        })?;
        progress(&format!("{nodes} nodes"));
        let servers: Vec<IpAddr> = pods.iter().map(|(_, server)| server.address()).collect();
        install(&lab, balancers, &servers, progress)?;
        let mut entrants = Vec::new();
        for ((node, balancer), (client, server)) in lab.nodes().iter().zip(balancers).zip(pods) {
            for place in [client.namespace(), node.namespace()] {
                // So many that none is used twice: a closed connection waits, and its port with it.
                place.sysctl("net/ipv4/ip_local_port_range", "10000 65000")?;
            }
            let ports = [SERVER_PORTS[0], SERVER_PORTS[1], DIRECT_PORT];
            let serving = Worker::server(Place::Pod(&server), cpus.server, &ports)?;
            let in_pod = Worker::client(Place::Pod(&client), cpus.client)?;
            let on_node = Worker::client(Place::Node(node), cpus.client)?;
            entrants.push(Entrant { balancer: *balancer, server, in_pod, on_node, _serving: serving });
        }
        Ok(Self { entrants, _lab: lab })
    }
}

/// Installs each balancer on its node, on as many threads as there are CPUs; those with the most Services first, so that none of
/// them is what all wait for at the end.
fn install(
    lab: &Lab,
    balancers: &[Balancer],
    servers: &[IpAddr],
    progress: &(dyn Fn(&str) + Sync),
) -> Result<()> {
    let mut order: Vec<usize> = (0..balancers.len()).collect();
    order.sort_by_key(|number| Reverse(balancers[*number].services()));
    let left = Mutex::new(order.into_iter());
    let left = || left.lock().unwrap_or_else(PoisonError::into_inner);
    let install = |number: usize| {
        let balancer = balancers[number];
        let begin = Instant::now();
        waited(balancer, || balancer.install(lab, lab.node(number), servers[number]))?;
        progress(&format!("{balancer}: installed in {:.1} s", begin.elapsed().as_secs_f64()));
        Ok(())
    };
    let work = || {
        loop {
            // A statement of its own: the lock is given back before the work begins.
            let next = left().next();
            let Some(number) = next else { return Ok(()) };
            if let Err(error) = install(number) {
                // Nobody needs the others any more.
                left().by_ref().for_each(drop);
                return Err(error);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().ok().context("a thread panicked")?)
    })
}

impl Entrant {
    /// Measures one kind of traffic for some time; with `past`, to the server itself, whatever Services there are.
    ///
    /// # Errors
    /// Something failed that may not: every connection and every datagram must come through.
    pub fn measure(&mut self, from: From, kind: Kind, time: Duration, past: bool) -> Result<Measured> {
        let way = if past { Balancer::None } else { self.balancer };
        let order = Order { kind, to: way.target(self.server.address()), time };
        let worker = match from {
            From::Pod => &mut self.in_pod,
            From::Node => &mut self.on_node,
        };
        worker.measure(order).with_context(|| self.balancer.to_string())
    }
}
