//! The index: what the agent knows of the cluster, which Services have to be planned again, and when that is done.
//!
//! Fed by [`Event`]s of a source, it knows nothing of Kubernetes types. [`Index`] keeps the objects, [`Engine`] decides
//! when a round of planning is due and hands its outcome to a [`PlanSink`].

mod counts;
mod engine;
mod event;
mod store;

pub use counts::{ChangeCounts, KindCount};
pub use engine::{ApplyFailure, Engine, EngineConfig, Failed, PlanSink, PlannedChange, Round};
pub use event::{Change, Event, StoreEvent};
pub use store::{Changes, Index, Stamp};
