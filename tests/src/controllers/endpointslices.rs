//! The EndpointSlice controller: from Services and pods to slices.

mod endpoints;
mod trigger;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{Place, place, report, selects};
use crate::apiserver::{ApiError, ApiHandle, Change, ChangeKind, Changes, DeleteOptions, text};
use endpoints::{Group, groups};
use trigger::TriggerTimes;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What the controller knows of the cluster, kept current by its changes.
#[derive(Default)]
struct Cluster {
    services: BTreeMap<Place, Arc<Value>>,
    pods: BTreeMap<Place, Arc<Value>>,
    /// The zones of nodes.
    zones: HashMap<String, String>,
    /// The slices this controller made, by the place of their Service, in the order they were made.
    slices: HashMap<Place, Vec<Arc<Value>>>,
    triggers: HashMap<Place, TriggerTimes>,
}

pub(super) async fn run(api: ApiHandle, mut changes: Changes, slice_size: usize) {
    let mut cluster = Cluster::default();
    while let Some(change) = changes.next().await {
        let mut touched = BTreeSet::new();
        cluster.take(&change, &mut touched);
        // What has happened meanwhile is one round.
        while let Some(change) = changes.try_next() {
            cluster.take(&change, &mut touched);
        }
        for service in touched {
            report("EndpointSlices", cluster.reconcile(&api, &service, slice_size));
        }
    }
}

impl Cluster {
    /// Takes in a change and notes which Services it touches.
    fn take(&mut self, change: &Change, touched: &mut BTreeSet<Place>) {
        let (object, key) = (&change.object, place(&change.object));
        let gone = change.kind == ChangeKind::Deleted;
        match change.resource.kind {
            "Service" => {
                if gone {
                    self.services.remove(&key);
                } else {
                    self.services.insert(key.clone(), Arc::clone(object));
                }
                touched.insert(key);
            }
            "Pod" => {
                let before = if gone {
                    self.pods.remove(&key)
                } else {
                    self.pods.insert(key.clone(), Arc::clone(object))
                };
                for (service, value) in self.services.range((key.0.clone(), String::new())..) {
                    if service.0 != key.0 {
                        break;
                    }
                    let selector = &value["spec"]["selector"];
                    if selects(selector, object) || before.as_ref().is_some_and(|it| selects(selector, it)) {
                        touched.insert(service.clone());
                    }
                }
            }
            "Node" => {
                let zone = text(object, "/metadata/labels/topology.kubernetes.io~1zone").to_owned();
                let before = if gone || zone.is_empty() {
                    self.zones.remove(&key.1)
                } else {
                    self.zones.insert(key.1.clone(), zone)
                };
                if before.as_ref() != self.zones.get(&key.1) {
                    touched.extend(self.services.keys().cloned());
                }
            }
            _ => self.take_slice(object, key, gone, touched),
        }
    }

    /// A slice of this controller that someone else changed or removed is put right.
    fn take_slice(&mut self, object: &Arc<Value>, key: Place, gone: bool, touched: &mut BTreeSet<Place>) {
        let labels = &object["metadata"]["labels"];
        if labels[MANAGED_BY] != MANAGER {
            return;
        }
        let service = (key.0, labels[SERVICE_NAME].as_str().unwrap_or_default().to_owned());
        let slices = self.slices.entry(service.clone()).or_default();
        let version = |it: &Value| text(it, "/metadata/resourceVersion").parse::<u64>().unwrap_or_default();
        let known = slices.iter().position(|it| text(it, "/metadata/name") == key.1);
        match (known, gone) {
            // What this controller did itself, seen later.
            (Some(at), _) if version(&slices[at]) >= version(object) => return,
            (None, true) => return,
            (Some(at), true) => drop(slices.remove(at)),
            (Some(at), false) => slices[at] = Arc::clone(object),
            (None, false) => slices.push(Arc::clone(object)),
        }
        touched.insert(service);
    }

    fn reconcile(&mut self, api: &ApiHandle, key: &Place, slice_size: usize) -> Result<(), ApiError> {
        let Some(service) = self.services.get(key).cloned() else {
            self.triggers.remove(key);
            for slice in self.slices.remove(key).unwrap_or_default() {
                delete(api, &slice)?;
            }
            return Ok(());
        };
        let selector = &service["spec"]["selector"];
        if !selector.is_object() || service["spec"]["type"] == "ExternalName" {
            return Ok(());
        }
        let pods: Vec<Arc<Value>> = self
            .pods
            .range((key.0.clone(), String::new())..)
            .take_while(|(place, _)| place.0 == key.0)
            .filter(|(_, pod)| selects(selector, pod))
            .map(|(_, pod)| Arc::clone(pod))
            .collect();
        let trigger = self.triggers.entry(key.clone()).or_default().next(&service, &pods);
        let mut present = self.slices.remove(key).unwrap_or_default();
        let families = service["spec"]["ipFamilies"].as_array().cloned().unwrap_or_default();
        let mut round = Round { api, service: &service, trigger, slice_size, kept: Vec::new() };
        let mut done = Ok(());
        for family in families.iter().filter_map(Value::as_str) {
            let (own, others): (Vec<_>, Vec<_>) =
                present.drain(..).partition(|slice| text(slice, "/addressType") == family);
            present = others;
            let wanted = groups(&service, &pods, family, &self.zones);
            done = done.and(round.family(family, own, wanted));
        }
        // Slices of a family the Service has no more.
        for slice in present {
            done = done.and(delete(api, &slice));
        }
        self.slices.insert(key.clone(), round.kept);
        done
    }
}

fn delete(api: &ApiHandle, slice: &Value) -> Result<(), ApiError> {
    let (namespace, name) = place(slice);
    match api.delete_value("endpointslices", &namespace, &name, &DeleteOptions::default()) {
        Err(error) if error.code == 404 => Ok(()),
        done => done,
    }
}

/// A slice to be (none: a new one), its ports, its endpoints.
type Planned = (Option<Arc<Value>>, Value, Vec<Value>);

/// Bringing the slices of one Service up to date.
struct Round<'a> {
    api: &'a ApiHandle,
    service: &'a Value,
    trigger: Option<String>,
    slice_size: usize,
    kept: Vec<Arc<Value>>,
}

impl Round<'_> {
    fn family(
        &mut self,
        family: &str,
        mut present: Vec<Arc<Value>>,
        wanted: Vec<Group>,
    ) -> Result<(), ApiError> {
        // A Service without endpoints has one empty slice.
        let wanted = if wanted.is_empty() { vec![Group::default()] } else { wanted };
        let mut matched = Vec::new();
        for group in &wanted {
            let (same, others) = present.drain(..).partition(|slice| slice["ports"] == group.ports);
            present = others;
            matched.push(same);
        }
        let mut plans: Vec<Planned> = Vec::new();
        for (group, same) in wanted.into_iter().zip(matched) {
            present.extend(plan(&mut plans, group, same, self.slice_size));
        }
        // Slices with other ports, or without endpoints, become the new ones before new ones are made.
        for (slice, ..) in plans.iter_mut().filter(|(slice, ..)| slice.is_none()) {
            *slice = if present.is_empty() { None } else { Some(present.remove(0)) };
        }
        for slice in present {
            delete(self.api, &slice)?;
        }
        plans
            .into_iter()
            .try_for_each(|(slice, ports, endpoints)| self.write(family, slice, ports, endpoints))
    }

    /// Creates or updates a slice, unless it is as it should be.
    fn write(
        &mut self,
        family: &str,
        slice: Option<Arc<Value>>,
        ports: Value,
        endpoints: Vec<Value>,
    ) -> Result<(), ApiError> {
        let endpoints = if endpoints.is_empty() { Value::Null } else { Value::Array(endpoints) };
        let labels = self.labels();
        if let Some(slice) = &slice
            && slice["ports"] == ports
            && slice["endpoints"] == endpoints
            && slice["metadata"]["labels"] == labels
        {
            self.kept.push(Arc::clone(slice));
            return Ok(());
        }
        let (namespace, name) = place(self.service);
        let existing = slice.is_some();
        let mut object = match slice {
            Some(slice) => Value::clone(&slice),
            None => json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "generateName": format!("{name}-"),
                    "namespace": namespace,
                    "ownerReferences": [{
                        "apiVersion": "v1", "kind": "Service", "name": name,
                        "uid": self.service["metadata"]["uid"],
                        "controller": true, "blockOwnerDeletion": true,
                    }],
                },
                "addressType": family,
            }),
        };
        object["ports"] = ports;
        object["endpoints"] = endpoints;
        object["metadata"]["labels"] = labels;
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
            metadata.remove("annotations");
        }
        if let Some(trigger) = &self.trigger {
            object["metadata"]["annotations"] = json!({TRIGGER_TIME: trigger});
        }
        let written = if existing { self.api.update(&object) } else { self.api.create(&object) }?;
        self.kept.push(Arc::new(written));
        Ok(())
    }

    fn labels(&self) -> Value {
        let mut labels = self.service.pointer("/metadata/labels").cloned().unwrap_or_else(|| json!({}));
        labels[SERVICE_NAME] = self.service["metadata"]["name"].clone();
        labels[MANAGED_BY] = MANAGER.into();
        if self.service["spec"]["clusterIP"] == "None" {
            labels[HEADLESS] = "".into();
        }
        labels
    }
}

/// Decides which slices hold a group's endpoints: those that are in a slice stay there, new ones fill up slices that
/// change anyway, then others, then new slices. Returns the slices that are of
/// no more use.
fn plan(
    plans: &mut Vec<Planned>,
    group: Group,
    present: Vec<Arc<Value>>,
    slice_size: usize,
) -> Vec<Arc<Value>> {
    let Group { ports, mut endpoints } = group;
    let first = plans.len();
    for slice in present {
        let mut staying = Vec::new();
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if staying.len() < slice_size
                && let Some(at) = endpoints.iter().position(|it| same_endpoint(it, endpoint))
            {
                staying.push(endpoints.remove(at));
            }
        }
        plans.push((Some(slice), ports.clone(), staying));
    }
    let changed = |(slice, _, staying): &Planned| {
        slice.as_ref().is_none_or(|it| it["endpoints"].as_array() != Some(staying))
    };
    let mut order: Vec<usize> = (first..plans.len()).collect();
    order.sort_by_key(|&at| (!changed(&plans[at]), std::cmp::Reverse(plans[at].2.len())));
    for at in order {
        let room = slice_size - plans[at].2.len();
        let more = room.min(endpoints.len());
        plans[at].2.extend(endpoints.drain(..more));
    }
    while !endpoints.is_empty() {
        let count = slice_size.min(endpoints.len());
        plans.push((None, ports.clone(), endpoints.drain(..count).collect()));
    }
    // Empty slices go, as long as one slice is left.
    let (mut at, mut left_over) = (first, Vec::new());
    while at < plans.len() && plans.len() - first > 1 {
        if plans[at].2.is_empty() { left_over.extend(plans.remove(at).0) } else { at += 1 }
    }
    if plans.len() == first {
        plans.push((None, ports, Vec::new()));
    }
    left_over
}

fn same_endpoint(left: &Value, right: &Value) -> bool {
    left["addresses"] == right["addresses"] && left["targetRef"]["uid"] == right["targetRef"]["uid"]
}
