//! The objects by name, joined by Service, and what changed since it was last asked.

use std::collections::BTreeMap;
use std::time::Instant;

use jiff::Timestamp;

use super::event::{Change, Event, StoreEvent};
use crate::model::{
    EndpointSlice, Few, KeyHash, KeyedSet, NodeFacts, Numbers, ObjectName, Service, SliceName,
};
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

/// What is known of one Service; slices may come before their Service and stay after it. Never neither.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Service>,
    /// Sorted by name.
    slices: Few<EndpointSlice>,
}

impl Entry {
    fn name(&self) -> Option<&ObjectName> {
        let service = self.service.as_ref().map(|service| &service.name);
        service.or_else(|| self.slices.first().map(|slice| &slice.service))
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        self.slices.binary_search_by(|slice| (*slice.name.name).cmp(name))
    }

    fn has(&self, slice: &SliceName) -> bool {
        self.find(&slice.name).is_ok_and(|at| self.slices[at].name == *slice)
    }

    /// Takes in a slice; false when it is known just like that.
    fn put(&mut self, mut slice: EndpointSlice) -> bool {
        // Most of what is kept are names and endpoints: one copy of the one, no room for more of the other.
        if let Some(name) = self.name() {
            slice.service = name.clone();
            if slice.name.namespace == name.namespace {
                slice.name.namespace = name.namespace.clone();
            }
        }
        slice.endpoints.shrink_to_fit();
        match self.find(&slice.name.name) {
            Ok(at) if self.slices[at] == slice => return false,
            Ok(at) => self.slices[at] = slice,
            Err(at) => self.slices.insert(at, slice),
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
    /// In places that stay theirs; boxed, because places are more than are used when there were more once.
    entries: Vec<Option<Box<Entry>>>,
    /// Places that are empty.
    free: Vec<u32>,
    /// Places by name of the Service.
    services: Numbers,
    /// Places by name of a slice: of the Service that it was last joined to, since its label may change.
    slices: Numbers,
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
    pub fn apply_service(&mut self, mut service: Service, stamp: Stamp) {
        let place = self.place(&service.name);
        let Some(entry) = self.entry_mut(place) else { return };
        if let Some(name) = entry.name() {
            service.name = name.clone();
        }
        let name = service.name.clone();
        if entry.service.as_ref() != Some(&service) {
            entry.service = Some(service);
            self.mark(name, stamp);
        }
    }

    /// A Service is gone. Its slices stay known, for the case that it comes back before they change.
    pub fn delete_service(&mut self, name: &ObjectName, stamp: Stamp) {
        let Some(place) = self.find(name) else { return };
        let taken = self.entry_mut(place).and_then(|entry| entry.service.take());
        self.forget_if_empty(place, name);
        if taken.is_some() {
            self.mark(name.clone(), stamp);
        }
    }

    /// These are all the Services there are.
    pub fn reset_services(&mut self, services: Vec<Service>, stamp: Stamp) {
        let mut vanished: KeyedSet<ObjectName> =
            self.services().map(|service| service.name.clone()).collect();
        if vanished.is_empty() {
            self.services.reserve(services.len());
            self.entries.reserve(services.len());
        } else {
            for service in &services {
                vanished.remove(&service.name);
            }
        }
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
        let (hash, owner) = self.find_slice(&slice.name);
        let place = self.place(&slice.service);
        if owner != Some(place) {
            if let Some(owner) = owner {
                self.remove_from(owner, &slice.name, stamp);
                self.slices.replace(hash, owner, place);
            } else {
                self.slices.insert(hash, place);
            }
        }
        let service = slice.service.clone();
        let Some(entry) = self.entry_mut(place) else { return };
        if entry.put(slice) && entry.service.is_some() {
            self.mark(service, stamp);
        }
    }

    /// A slice is gone.
    pub fn delete_slice(&mut self, name: &SliceName, stamp: Stamp) {
        let (hash, owner) = self.find_slice(name);
        if let Some(owner) = owner {
            self.slices.remove(hash, owner);
            self.remove_from(owner, name, stamp);
        }
    }

    /// These are all the slices there are.
    pub fn reset_slices(&mut self, slices: Vec<EndpointSlice>, stamp: Stamp) {
        let known = self.entries.iter().flatten().flat_map(|entry| &entry.slices);
        let mut vanished: KeyedSet<SliceName> = known.map(|slice| slice.name.clone()).collect();
        if vanished.is_empty() {
            self.slices.reserve(slices.len());
        } else {
            for slice in &slices {
                vanished.remove(&slice.name);
            }
        }
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
        let hinted = self.entries.iter().flatten().filter(|entry| entry.has_zone_hints());
        let names: Vec<_> = hinted.filter_map(|entry| Some(entry.service.as_ref()?.name.clone())).collect();
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
            services.retain(|name, _| self.entry(name).is_some_and(|entry| entry.service.is_some()));
        }
        Some(Changes { full, services })
    }

    /// Puts changes back that could not be applied: all of them, or those of some Services.
    pub fn restore(&mut self, changes: Changes) {
        if changes.full {
            self.handed_out = false;
            // A full hand-out names every Service, so that none is missing the next time.
            let names: Vec<_> = self.services().map(|service| service.name.clone()).collect();
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
        let entry = self.entry(name)?;
        Some(plan_service(entry.service.as_ref()?, &entry.slices, self.node.as_ref()?))
    }

    /// The Services known, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.entries.iter().flatten().filter_map(|entry| entry.service.as_ref())
    }

    /// The facts of our node, once known.
    pub fn node(&self) -> Option<&NodeFacts> {
        self.node.as_ref()
    }

    fn entry_mut(&mut self, place: u32) -> Option<&mut Entry> {
        self.entries.get_mut(place as usize)?.as_deref_mut()
    }

    fn entry(&self, name: &ObjectName) -> Option<&Entry> {
        self.entries.get(self.find(name)? as usize)?.as_deref()
    }

    fn find(&self, name: &ObjectName) -> Option<u32> {
        self.services.find(self.services.hash(name), |place| is_named(&self.entries, place, name))
    }

    /// The place of the Service that has a slice.
    fn find_slice(&self, name: &SliceName) -> (KeyHash, Option<u32>) {
        let hash = self.slices.hash(name);
        let has = |place: u32| self.entries[place as usize].as_ref().is_some_and(|entry| entry.has(name));
        (hash, self.slices.find(hash, has))
    }

    /// The place of a Service: its own, or a new one, into which something has to come at once.
    fn place(&mut self, name: &ObjectName) -> u32 {
        let hash = self.services.hash(name);
        let found = self.services.find(hash, |place| is_named(&self.entries, place, name));
        found.unwrap_or_else(|| {
            let place = self.free.pop().unwrap_or(self.entries.len() as u32);
            if place as usize == self.entries.len() {
                self.entries.push(None);
            }
            self.entries[place as usize] = Some(Box::default());
            self.services.insert(hash, place);
            place
        })
    }

    fn forget_if_empty(&mut self, place: u32, name: &ObjectName) {
        let is_empty = |entry: &Entry| entry.service.is_none() && entry.slices.is_empty();
        if self.entries[place as usize].as_deref().is_some_and(is_empty) {
            self.services.remove(self.services.hash(name), place);
            self.entries[place as usize] = None;
            self.free.push(place);
        }
    }

    fn remove_from(&mut self, place: u32, slice: &SliceName, stamp: Stamp) {
        let Some(entry) = self.entry_mut(place) else { return };
        let Some(name) = entry.name().cloned() else { return };
        if !entry.take(&slice.name) {
            return;
        }
        if entry.service.is_some() {
            // The trigger time on a slice says nothing about its removal (S-62).
            self.mark(name, Stamp { triggered: None, ..stamp });
        } else {
            self.forget_if_empty(place, &name);
        }
    }

    fn mark_all(&mut self, stamp: Stamp) {
        let names: Vec<_> = self.services().map(|service| service.name.clone()).collect();
        for name in names {
            self.mark(name, stamp);
        }
    }

    fn mark(&mut self, name: ObjectName, stamp: Stamp) {
        self.dirty.entry(name).or_insert(stamp).merge(stamp);
    }
}

fn is_named(entries: &[Option<Box<Entry>>], place: u32, name: &ObjectName) -> bool {
    entries[place as usize].as_ref().is_some_and(|entry| entry.name() == Some(name))
}

#[cfg(test)]
#[path = "store_tests.rs"]
pub(super) mod tests;
