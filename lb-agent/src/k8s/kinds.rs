//! The kinds that are watched, and what an object of each becomes.

use std::sync::atomic::Ordering;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;

use super::convert::{self, Converter, Reduced};
use super::guarded::Guarded;
use super::problems::{Problems, SourceStats};
use super::select::{SERVICE_FIELDS, Selection};
use crate::index::{Change, Event, StoreEvent};
use crate::model::{self, NodeFacts, ObjectName};

/// A watched kind: where its objects are, and what they become.
pub(super) trait Kind: Send {
    /// The Kubernetes type.
    type Object: DeserializeOwned + Clone + std::fmt::Debug + Send + 'static;
    /// What is told of the objects.
    type Event: Send;
    /// Plural name, for the log.
    const NAME: &'static str;
    /// Path of the collection.
    const PATH: &'static str;
    /// The agent does without when the server has no such kind, or does not let it read them.
    const OPTIONAL: bool = false;

    fn label_selector(&self) -> Option<String>;
    fn field_selector(&self) -> Option<String>;
    /// A list begins.
    fn begin(&mut self);
    /// One object of the list.
    fn listed(&mut self, object: Guarded<Self::Object>, stats: &SourceStats);
    /// The list is complete.
    fn end(&mut self) -> Self::Event;
    /// An object is new or changed.
    fn applied(&mut self, object: Guarded<Self::Object>, stats: &SourceStats) -> Option<Self::Event>;
    /// An object is gone.
    fn deleted(&mut self, name: ObjectName) -> Option<Self::Event>;
    /// What to go on with when the kind may not be read at all; `None` means to wait.
    fn forbidden(&mut self) -> Option<Self::Event> {
        None
    }
}

/// Reduces objects of one kind and reports what was wrong with them.
pub(super) struct Reducer<T: Reducible> {
    selection: Selection,
    converter: Converter,
    problems: Problems,
    listed: Vec<T>,
}

/// A model value that comes from a Kubernetes object.
pub(super) trait Reducible: Sized + Send {
    type Object: DeserializeOwned + Clone + std::fmt::Debug + Send + 'static;
    const KIND: &'static str;
    const NAME: &'static str;
    const PATH: &'static str;
    const FIELDS: Option<&'static str>;

    fn reduce(object: &Self::Object, selection: &Selection, converter: &mut Converter) -> Reduced<Self>;
    fn triggered(object: &Self::Object) -> Option<Timestamp>;
    fn change(event: StoreEvent<Self>) -> Change;
}

impl Reducible for model::Service {
    type Object = Service;
    const KIND: &'static str = "Service";
    const NAME: &'static str = "services";
    const PATH: &'static str = "/api/v1/services";
    const FIELDS: Option<&'static str> = Some(SERVICE_FIELDS);

    fn reduce(object: &Service, selection: &Selection, converter: &mut Converter) -> Reduced<Self> {
        convert::service(object, selection, converter)
    }

    fn triggered(_: &Service) -> Option<Timestamp> {
        None
    }

    fn change(event: StoreEvent<Self>) -> Change {
        Change::Services(event)
    }
}

impl Reducible for model::EndpointSlice {
    type Object = EndpointSlice;
    const KIND: &'static str = "EndpointSlice";
    const NAME: &'static str = "endpointslices";
    const PATH: &'static str = "/apis/discovery.k8s.io/v1/endpointslices";
    const FIELDS: Option<&'static str> = None;

    fn reduce(object: &EndpointSlice, selection: &Selection, converter: &mut Converter) -> Reduced<Self> {
        convert::endpoint_slice(object, selection, converter)
    }

    fn triggered(object: &EndpointSlice) -> Option<Timestamp> {
        convert::last_change(object)
    }

    fn change(event: StoreEvent<Self>) -> Change {
        Change::Slices(event)
    }
}

impl<T: Reducible> Reducer<T> {
    pub(super) fn new(selection: Selection) -> Self {
        Self {
            selection,
            converter: Converter::default(),
            problems: Problems::new(T::KIND),
            listed: Vec::new(),
        }
    }

    /// Reduces one object; `None` when it cannot be used, which has been reported then.
    pub(super) fn reduce(
        &mut self,
        object: Guarded<T::Object>,
        stats: &SourceStats,
    ) -> Option<(StoreEvent<T>, Option<Timestamp>)> {
        let Guarded { name, version, body } = object;
        let reduced = match &body {
            Ok(object) => T::reduce(object, &self.selection, &mut self.converter),
            Err(reason) => Reduced::Bad(reason.clone()),
        };
        self.problems.fields(stats, &name, &version, &self.converter.take_skipped());
        match reduced {
            Reduced::Keep(value) => {
                Some((StoreEvent::Apply(value), body.as_ref().ok().and_then(T::triggered)))
            }
            Reduced::Ignore => Some((StoreEvent::Delete(name), None)),
            Reduced::Bad(reason) => {
                self.problems.object(stats, &name, &version, &reason);
                None
            }
        }
    }
}

impl<T: Reducible> Kind for Reducer<T> {
    type Object = T::Object;
    type Event = Event;
    const NAME: &'static str = T::NAME;
    const PATH: &'static str = T::PATH;

    fn label_selector(&self) -> Option<String> {
        Some(self.selection.label_selector())
    }

    fn field_selector(&self) -> Option<String> {
        T::FIELDS.map(str::to_owned)
    }

    fn begin(&mut self) {
        self.listed.clear();
    }

    fn listed(&mut self, object: Guarded<Self::Object>, stats: &SourceStats) {
        if let Some((StoreEvent::Apply(value), _)) = self.reduce(object, stats) {
            self.listed.push(value);
        }
    }

    fn end(&mut self) -> Event {
        Event::now(T::change(StoreEvent::Reset(std::mem::take(&mut self.listed))))
    }

    fn applied(&mut self, object: Guarded<Self::Object>, stats: &SourceStats) -> Option<Event> {
        let (event, triggered) = self.reduce(object, stats)?;
        Some(Event { triggered, ..Event::now(T::change(event)) })
    }

    fn deleted(&mut self, name: ObjectName) -> Option<Event> {
        Some(Event::now(T::change(StoreEvent::Delete(name))))
    }
}

/// Our own Node (S-05).
pub(super) struct OwnNode {
    facts: NodeFacts,
    problems: Problems,
}

impl OwnNode {
    pub(super) fn new(name: &str) -> Self {
        Self { facts: NodeFacts { name: name.into(), zone: None }, problems: Problems::new("Node") }
    }

    fn take(&mut self, object: Guarded<Node>, stats: &SourceStats) -> bool {
        // A server that does not apply the field selector sends every node.
        if *object.name.name != *self.facts.name {
            return false;
        }
        match &object.body {
            Ok(node) => {
                self.facts = convert::node_facts(node);
                stats.node_leaves.store(convert::node_leaves(node), Ordering::Relaxed);
            }
            Err(reason) => self.problems.object(stats, &object.name, &object.version, reason),
        }
        object.body.is_ok()
    }
}

impl Kind for OwnNode {
    type Object = Node;
    type Event = Event;
    const NAME: &'static str = "nodes";
    const PATH: &'static str = "/api/v1/nodes";

    fn label_selector(&self) -> Option<String> {
        None
    }

    fn field_selector(&self) -> Option<String> {
        Some(format!("metadata.name={}", self.facts.name))
    }

    fn begin(&mut self) {}

    fn listed(&mut self, object: Guarded<Node>, stats: &SourceStats) {
        self.take(object, stats);
    }

    /// A node that is not listed keeps the facts it had: deleting the Node object must not change how it forwards.
    fn end(&mut self) -> Event {
        Event::now(Change::Node(self.facts.clone()))
    }

    fn applied(&mut self, object: Guarded<Node>, stats: &SourceStats) -> Option<Event> {
        self.take(object, stats).then(|| Event::now(Change::Node(self.facts.clone())))
    }

    fn deleted(&mut self, _: ObjectName) -> Option<Event> {
        None
    }

    fn forbidden(&mut self) -> Option<Event> {
        Some(Event::now(Change::Node(self.facts.clone())))
    }
}
