//! The objects by name, joined by Service, and what changed since it was last asked.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use jiff::Timestamp;

use super::event::{Change, Event, StoreEvent};
use crate::model::{EndpointSlice, NodeFacts, ObjectName, Service, SliceName};
use crate::plan::{ServicePlan, plan_service};

/// When a change came about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// When the source received it.
    pub received: Option<Instant>,
    /// When it happened in the cluster, where that is known (S-62).
    pub triggered: Option<Timestamp>,
}

impl Stamp {
    /// The oldest of both: the latency of a change counts from its first cause.
    fn merge(&mut self, other: Self) {
        self.received = oldest(self.received, other.received);
        self.triggered = oldest(self.triggered, other.triggered);
    }
}

fn oldest<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The Services to plan again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// True the first time: `services` are all there are, and whatever else is applied has to go (S-84).
    pub full: bool,
    /// The Services, each with the oldest change behind it. One that is not in the index any more is gone.
    pub services: BTreeMap<ObjectName, Stamp>,
}

/// What is known of one Service; slices may come before their Service and stay after it.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Service>,
    /// Sorted by name. A list, because hardly any Service has more than a few, and a tree's first node is made for eleven.
    slices: Vec<EndpointSlice>,
}

impl Entry {
    fn find(&self, name: &str) -> Result<usize, usize> {
        self.slices.binary_search_by(|slice| (*slice.name.name).cmp(name))
    }

    /// Takes in a slice; false when it is known just like that.
    fn put(&mut self, slice: EndpointSlice) -> bool {
        match self.find(&slice.name.name) {
            Ok(at) if self.slices[at] == slice => return false,
            Ok(at) => self.slices[at] = slice,
            Err(at) => {
                if self.slices.is_empty() {
                    // One is what most Services have.
                    self.slices.reserve_exact(1);
                }
                self.slices.insert(at, slice);
            }
        }
        true
    }

    /// Forgets a slice; false when it is not known.
    fn take(&mut self, name: &str) -> bool {
        let found = self.find(name).ok().map(|at| self.slices.remove(at));
        found.is_some()
    }

    fn has_zone_hints(&self) -> bool {
        let mut endpoints = self.slices.iter().flat_map(|slice| &slice.endpoints);
        endpoints.any(|endpoint| !endpoint.zone_hints.is_empty())
    }
}

/// Everything the planner reads, and the Services that have to be planned again.
#[derive(Debug, Default)]
pub struct Index {
    entries: HashMap<ObjectName, Entry>,
    /// The Service each known slice was last joined to: its label may change.
    slice_owner: HashMap<SliceName, ObjectName>,
    node: Option<NodeFacts>,
    services_synced: bool,
    slices_synced: bool,
    handed_out: bool,
    dirty: BTreeMap<ObjectName, Stamp>,
}

impl Index {
    /// An empty index: nothing known, nothing synced.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what a source says.
    pub fn handle(&mut self, event: Event) {
        let stamp = Stamp { received: Some(event.received), triggered: event.triggered };
        match event.change {
            Change::Services(StoreEvent::Apply(service)) => self.apply_service(service, stamp),
            Change::Services(StoreEvent::Delete(name)) => self.delete_service(&name, stamp),
            Change::Services(StoreEvent::Reset(services)) => self.reset_services(services, stamp),
            Change::Slices(StoreEvent::Apply(slice)) => self.apply_slice(slice, stamp),
            Change::Slices(StoreEvent::Delete(name)) => self.delete_slice(&name, stamp),
            Change::Slices(StoreEvent::Reset(slices)) => self.reset_slices(slices, stamp),
            Change::Node(facts) => self.set_node(facts, stamp),
        }
    }

    /// A Service is new or changed. One that equals what is known changes nothing.
    pub fn apply_service(&mut self, service: Service, stamp: Stamp) {
        let name = service.name.clone();
        let entry = self.entries.entry(name.clone()).or_default();
        if entry.service.as_ref() != Some(&service) {
            entry.service = Some(service);
            self.mark(name, stamp);
        }
    }

    /// A Service is gone. Its slices stay known, for the case that it comes back before they change.
    pub fn delete_service(&mut self, name: &ObjectName, stamp: Stamp) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        if entry.service.take().is_some() {
            if entry.slices.is_empty() {
                self.entries.remove(name);
            }
            self.mark(name.clone(), stamp);
        }
    }

    /// These are all the Services there are.
    pub fn reset_services(&mut self, services: Vec<Service>, stamp: Stamp) {
        let listed: HashSet<_> = services.iter().map(|service| service.name.clone()).collect();
        let known = self.entries.iter().filter(|(_, entry)| entry.service.is_some()).map(|(name, _)| name);
        let vanished: Vec<_> = known.filter(|name| !listed.contains(*name)).cloned().collect();
        for name in vanished {
            self.delete_service(&name, stamp);
        }
        for service in services {
            self.apply_service(service, stamp);
        }
        self.services_synced = true;
    }

    /// A slice is new or changed; it may have moved to another Service.
    pub fn apply_slice(&mut self, slice: EndpointSlice, stamp: Stamp) {
        let owner = self.slice_owner.insert(slice.name.clone(), slice.service.clone());
        if let Some(previous) = owner.filter(|owner| *owner != slice.service) {
            self.remove_from(&previous, &slice.name, stamp);
        }
        let service = slice.service.clone();
        let entry = self.entries.entry(service.clone()).or_default();
        if entry.put(slice) && entry.service.is_some() {
            self.mark(service, stamp);
        }
    }

    /// A slice is gone.
    pub fn delete_slice(&mut self, name: &SliceName, stamp: Stamp) {
        if let Some(owner) = self.slice_owner.remove(name) {
            self.remove_from(&owner, name, stamp);
        }
    }

    /// These are all the slices there are.
    pub fn reset_slices(&mut self, slices: Vec<EndpointSlice>, stamp: Stamp) {
        let listed: HashSet<_> = slices.iter().map(|slice| slice.name.clone()).collect();
        let vanished: Vec<_> =
            self.slice_owner.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        for name in vanished {
            self.delete_slice(&name, stamp);
        }
        for slice in slices {
            self.apply_slice(slice, stamp);
        }
        self.slices_synced = true;
    }

    /// What is known of our node. Another zone concerns the Services with zone hints, anything else all of them: who is
    /// local changes.
    pub fn set_node(&mut self, facts: NodeFacts, stamp: Stamp) {
        let before = self.node.replace(facts);
        let (Some(before), Some(facts)) = (before, self.node.as_ref()) else { return self.mark_all(stamp) };
        if before == *facts {
            return;
        }
        if (NodeFacts { zone: facts.zone.clone(), ..before }) != *facts {
            return self.mark_all(stamp);
        }
        let hinted =
            self.entries.iter().filter(|(_, entry)| entry.service.is_some() && entry.has_zone_hints());
        let names: Vec<_> = hinted.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.mark(name, stamp);
        }
    }

    /// True once Services, EndpointSlices and the own node were all heard of. Planning anything earlier would reject
    /// traffic of Services whose endpoints are merely not known yet (S-84).
    pub fn synced(&self) -> bool {
        self.services_synced && self.slices_synced && self.node.is_some()
    }

    /// True when [`take_changes`](Self::take_changes) has something to hand out.
    pub fn has_changes(&self) -> bool {
        self.synced() && (!self.handed_out || !self.dirty.is_empty())
    }

    /// The Services to plan again, once; `None` while not synced or without any change.
    pub fn take_changes(&mut self) -> Option<Changes> {
        if !self.has_changes() {
            return None;
        }
        let full = !self.handed_out;
        self.handed_out = true;
        let mut services = std::mem::take(&mut self.dirty);
        if full {
            services.retain(|name, _| self.entries.get(name).is_some_and(|entry| entry.service.is_some()));
        }
        Some(Changes { full, services })
    }

    /// Puts changes back that could not be applied: all of them, or those of some Services.
    pub fn restore(&mut self, changes: Changes) {
        if changes.full {
            self.handed_out = false;
            // A full hand-out names every Service, so that none is missing the next time.
            let with_service = self.entries.iter().filter(|(_, entry)| entry.service.is_some());
            let names: Vec<_> = with_service.map(|(name, _)| name.clone()).collect();
            for name in names {
                self.dirty.entry(name).or_default();
            }
        }
        for (name, stamp) in changes.services {
            self.mark(name, stamp);
        }
    }

    /// Plans one Service from what is known; `None` when there is no such Service.
    pub fn plan(&self, name: &ObjectName) -> Option<ServicePlan> {
        let entry = self.entries.get(name)?;
        let service = entry.service.as_ref()?;
        let slices: Vec<_> = entry.slices.iter().collect();
        Some(plan_service(service, &slices, self.node.as_ref()?))
    }

    /// The Services known, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.entries.values().filter_map(|entry| entry.service.as_ref())
    }

    /// The facts of our node, once known.
    pub fn node(&self) -> Option<&NodeFacts> {
        self.node.as_ref()
    }

    fn remove_from(&mut self, service: &ObjectName, slice: &SliceName, stamp: Stamp) {
        let Some(entry) = self.entries.get_mut(service) else { return };
        if !entry.take(&slice.name) {
            return;
        }
        if entry.service.is_some() {
            // The trigger time on a slice says nothing about its removal (S-62).
            self.mark(service.clone(), Stamp { triggered: None, ..stamp });
        } else if entry.slices.is_empty() {
            self.entries.remove(service);
        }
    }

    fn mark_all(&mut self, stamp: Stamp) {
        let with_service = self.entries.iter().filter(|(_, entry)| entry.service.is_some());
        let names: Vec<_> = with_service.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.mark(name, stamp);
        }
    }

    fn mark(&mut self, name: ObjectName, stamp: Stamp) {
        self.dirty.entry(name).or_insert(stamp).merge(stamp);
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
pub(super) mod tests;
