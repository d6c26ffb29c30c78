//! What an agent's pinned tables say, read in this process.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
};

use lb_agent::{
    apply::{BackendView, ServiceView, TablesView, view},
    dataplane::{BackendCounters, Counters, Maps, Pins, ServiceCounters, mapped::Access},
    model::Family,
    plan::ServicePortKey,
};
use lb_common::layout::Class;

/// A node's tables and counters at one moment.
#[derive(Debug, Clone)]
pub struct Tables {
    view: TablesView,
    /// In the order of the view's Services.
    services: Vec<ServiceCounters>,
    /// In the order of the view's backends.
    backends: Vec<BackendCounters>,
    drops: BTreeMap<&'static str, u64>,
}

impl Tables {
    pub(super) fn read(root: &Path) -> anyhow::Result<Self> {
        let maps = Maps::open(&Pins::new(root))?;
        let (view, counters) = (view(&maps.tables(Access::Read)?), Counters::new(&maps)?);
        let services = view.services.iter().map(|row| counters.service(row.index));
        let services = services.collect::<Result<_, _>>()?;
        let backends = view.backends.iter().map(|row| counters.backend(row.family == Family::V6, row.index));
        let backends = backends.collect::<Result<_, _>>()?;
        let drops = counters.reasons()?.into_iter().map(|(reason, count)| (reason.name(), count)).collect();
        Ok(Self { view, services, backends, drops })
    }

    /// The tables themselves.
    pub fn view(&self) -> &TablesView {
        &self.view
    }

    /// Packets dropped or refused, by name of the reason.
    pub fn drops(&self) -> &BTreeMap<&'static str, u64> {
        &self.drops
    }

    /// Packets dropped or refused for this reason (`not_proxied`).
    pub fn dropped(&self, reason: &str) -> u64 {
        self.drops.get(reason).copied().unwrap_or_default()
    }

    /// The row of a Service port.
    pub fn service(&self, key: &ServicePortKey) -> Option<&ServiceView> {
        self.view.services.iter().find(|service| service.key.as_ref() == Some(key))
    }

    /// All Service ports with their counters.
    pub fn ports(&self) -> impl Iterator<Item = (&ServiceView, &ServiceCounters)> {
        self.view.services.iter().zip(&self.services)
    }

    /// The ports of a Service (`namespace/name`) with their counters.
    pub fn ports_of(&self, service: &str) -> impl Iterator<Item = (&ServiceView, &ServiceCounters)> {
        self.ports()
            .filter(move |(row, _)| row.key.as_ref().is_some_and(|key| key.service.to_string() == service))
    }

    /// The endpoints of a Service port with their counters, those that only finish their flows included.
    pub fn endpoints(&self, service: &ServiceView) -> impl Iterator<Item = (&BackendView, &BackendCounters)> {
        let index = service.index;
        self.view.backends.iter().zip(&self.backends).filter(move |(row, _)| row.service == index)
    }

    /// The endpoints that new connections to a cluster IP of a Service port choose from.
    pub fn chosen(&self, service: &ServiceView) -> BTreeSet<SocketAddr> {
        let slots = &service.class(Class::Internal).slots;
        let chosen = self.endpoints(service).filter(|(backend, _)| slots.contains(&backend.index));
        chosen.map(|(backend, _)| SocketAddr::new(backend.address, backend.port)).collect()
    }
}
