//! Health check node ports (S-61): a load balancer asks them which nodes have endpoints of a Service.
//!
//! A listener for each Service that has such a port, at the addresses that node ports are served at. Any path answers;
//! what is said is worked out anew for every request.

mod answer;
mod bind;
mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

use crate::model::{Family, ObjectName};
use crate::net::NodeAddressing;
use crate::serve::is_no_such_family;
use bind::targets;
use serve::Listener;

/// How long a failed bind waits for its next attempt.
const BIND_AGAIN: Duration = Duration::from_secs(2);
/// How long a change may wait to be applied before the proxy says of itself that it is not healthy, unless configured:
/// what kube-proxy takes with its usual settings (S-60).
pub const STALE: Duration = Duration::from_secs(60);

/// The health check of one Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// When the Service was created, seconds since 1970: of two that want the same port, the older one has it.
    pub created: Option<i64>,
    /// The port, host order.
    pub port: u16,
    /// Ready endpoints on this node with an IPv4 address.
    pub local_v4: u32,
    /// Ready endpoints on this node with an IPv6 address.
    pub local_v6: u32,
}

impl Check {
    /// The number that a client of that family is told.
    const fn local(&self, family: Family) -> u32 {
        match family {
            Family::V4 => self.local_v4,
            Family::V6 => self.local_v6,
        }
    }
}

/// A listener that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindFailure {
    /// The Service it was for.
    pub service: ObjectName,
    /// What happened, in words for people.
    pub note: String,
}

/// What is answered, shared with those who know.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    checks: Mutex<BTreeMap<ObjectName, Check>>,
    changed: Notify,
    late: Mutex<Late>,
    stale: Duration,
}

impl Default for Shared {
    fn default() -> Self {
        Self { checks: Mutex::default(), changed: Notify::new(), late: Mutex::default(), stale: STALE }
    }
}

/// How the proxy as a whole is (S-60).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHealth {
    /// Changes get into the tables.
    pub healthy: bool,
    /// When the last ones did.
    pub last_updated: Option<Timestamp>,
    /// Services whose plan could not be applied: their neighbours are served all the same.
    pub late_services: usize,
}

/// What is known but not in the tables.
#[derive(Debug, Default)]
struct Late {
    /// Since when plans are being applied.
    applying: Option<Instant>,
    /// Services whose plan could not be applied, since when.
    failing: BTreeMap<ObjectName, Instant>,
    /// When plans were applied last.
    updated: Option<Timestamp>,
}

impl Health {
    /// Nothing is known yet; a change that waits for longer than `stale` is late.
    pub fn new(stale: Duration) -> Self {
        Self(Arc::new(Shared { stale, ..Shared::default() }))
    }

    /// How the proxy as a whole is.
    pub fn proxy(&self) -> ProxyHealth {
        let late = self.late();
        ProxyHealth {
            healthy: late.applying.is_none_or(|since| since.elapsed() < self.0.stale),
            last_updated: late.updated,
            late_services: late.failing.len(),
        }
    }

    /// Sets or removes the check of a Service.
    pub fn set(&self, service: &ObjectName, check: Option<Check>) {
        let mut checks = self.checks();
        let before = match check {
            Some(check) => checks.insert(service.clone(), check),
            None => checks.remove(service),
        };
        let key = |check: Option<Check>| check.map(|check| (check.port, check.created));
        if key(before) != key(check) {
            self.0.changed.notify_one();
        }
    }

    /// Forgets all Services but these.
    pub fn retain(&self, services: &BTreeSet<&ObjectName>) {
        self.late().failing.retain(|service, _| services.contains(service));
        let mut checks = self.checks();
        let before = checks.len();
        checks.retain(|service, _| services.contains(service));
        if checks.len() != before {
            self.0.changed.notify_one();
        }
    }

    /// Plans are about to be applied.
    pub fn applying(&self) {
        self.late().applying.get_or_insert_with(Instant::now);
    }

    /// Plans of these Services are applied, but for those that failed. One Service that cannot be applied says nothing
    /// about the others.
    pub fn applied<'a>(
        &self,
        services: impl IntoIterator<Item = &'a ObjectName>,
        failed: &BTreeSet<&ObjectName>,
    ) {
        let mut late = self.late();
        late.applying = None;
        late.updated = Some(Timestamp::now());
        for service in services {
            if failed.contains(service) {
                late.failing.entry(service.clone()).or_insert_with(Instant::now);
            } else {
                late.failing.remove(service);
            }
        }
    }

    /// False when the tables have been behind what is known of the Service for too long.
    fn proxy_is_healthy(&self, service: &ObjectName) -> bool {
        let late = self.late();
        let since = [late.applying, late.failing.get(service).copied()];
        since.into_iter().flatten().all(|since| since.elapsed() < self.0.stale)
    }

    /// What a client of that family is told of a Service.
    fn local_endpoints(&self, service: &ObjectName, family: Family) -> u32 {
        self.checks().get(service).map_or(0, |check| check.local(family))
    }

    fn checks(&self) -> std::sync::MutexGuard<'_, BTreeMap<ObjectName, Check>> {
        self.0.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn late(&self) -> std::sync::MutexGuard<'_, Late> {
        self.0.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The Services that get their port, by port: the oldest first, then by name (as S-83 has it for frontends). The
    /// others go without.
    fn owners(&self) -> (BTreeMap<u16, ObjectName>, Vec<BindFailure>) {
        let checks = self.checks();
        let mut ranked: Vec<(&ObjectName, &Check)> = checks.iter().collect();
        ranked.sort_by_key(|(service, check)| (check.created.is_none(), check.created, *service));
        let (mut owners, mut failures) = (BTreeMap::<u16, ObjectName>::new(), Vec::new());
        for (service, check) in ranked {
            match owners.get(&check.port) {
                Some(owner) => failures.push(BindFailure {
                    service: service.clone(),
                    note: format!(
                        "node port {} is the health check node port of {owner} already",
                        check.port
                    ),
                }),
                None => {
                    owners.insert(check.port, service.clone());
                }
            }
        }
        (owners, failures)
    }
}

/// Opens and closes listeners as Services and the node's addresses change.
pub struct HealthServer<F> {
    health: Health,
    addresses: watch::Receiver<Arc<NodeAddressing>>,
    listeners: BTreeMap<SocketAddr, Listener>,
    /// Failures that were told.
    told: Vec<BindFailure>,
    tell: F,
}

impl<F: FnMut(&BindFailure)> HealthServer<F> {
    /// `tell` hears of every failure once, until it is over.
    pub fn new(health: Health, addresses: watch::Receiver<Arc<NodeAddressing>>, tell: F) -> Self {
        Self { health, addresses, listeners: BTreeMap::new(), told: Vec::new(), tell }
    }

    /// Serves until it is dropped.
    pub async fn run(mut self) {
        loop {
            let failed = self.update();
            let health = self.health.clone();
            tokio::select! {
                () = health.0.changed.notified() => {}
                // The sender lives as long as the agent.
                Ok(()) = self.addresses.changed() => {}
                () = tokio::time::sleep(BIND_AGAIN), if failed => {}
            }
        }
    }

    /// Makes the listeners those that are wanted. True when one is missing.
    fn update(&mut self) -> bool {
        let (owners, mut failures) = self.health.owners();
        let addresses = self.addresses.borrow_and_update().clone();
        let hosts = targets(&addresses);
        let wanted: BTreeMap<SocketAddr, &ObjectName> = owners
            .iter()
            .flat_map(|(port, service)| {
                hosts.iter().map(move |host| (SocketAddr::new(*host, *port), service))
            })
            .collect();
        // What is not wanted any more first: a wildcard is in the way of everything else.
        self.listeners.retain(|address, listener| {
            let stays = wanted.get(address).is_some_and(|service| **service == *listener.service());
            if !stays {
                info!(service = %listener.service(), %address, "health check node port closed");
            }
            stays
        });
        let mut failed = false;
        for (address, service) in wanted {
            if self.listeners.contains_key(&address) {
                continue;
            }
            match Listener::open(address, service.clone(), self.health.clone()) {
                Ok(listener) => {
                    info!(%service, %address, "health check node port open");
                    self.listeners.insert(address, listener);
                }
                Err(error) if is_no_such_family(&error) => {
                    debug!(%service, %address, "no health check node port: this host lacks the family");
                }
                Err(error) => {
                    failed = true;
                    let note = format!("cannot listen for health checks at {address}: {error}");
                    failures.push(BindFailure { service: service.clone(), note });
                }
            }
        }
        for failure in failures.iter().filter(|failure| !self.told.contains(failure)) {
            let (service, reason) = (&failure.service, &failure.note);
            warn!(%service, reason, "health check node port not served; tried again");
            (self.tell)(failure);
        }
        self.told = failures;
        failed
    }
}

#[cfg(test)]
#[path = "health/health_tests.rs"]
mod tests;
