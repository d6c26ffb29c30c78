//! Kubernetes: the only place that names a Kubernetes type.
//!
//! A [`Source`] is where Services, EndpointSlices and the own Node come from: the API server ([`ClusterOptions`]) or a
//! directory of the same YAML ([`ManifestOptions`]). Both reduce every object to its [`crate::model`] value at once
//! and say what changed as [`crate::index::Event`]s.

mod address;
mod client;
mod convert;
mod events;
mod follow;
mod guarded;
mod kinds;
mod manifests;
mod problems;
mod ranges;
mod select;
mod trouble;

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::index::Event;
use crate::model::Cidr;

pub use client::{ClusterOptions, ConnectError};
pub use events::{Report, Reporter};
pub use manifests::{ManifestDecoder, ManifestError, ManifestOptions};
pub use problems::SourceStats;
pub use select::Selection;

use client::Cluster;
use manifests::Manifests;

/// Where the agent's objects come from.
pub struct Source {
    kind: SourceKind,
    stats: Arc<SourceStats>,
}

enum SourceKind {
    Cluster(Cluster),
    Manifests(Manifests),
}

impl Source {
    /// The API server. Finds out how to reach it, but does not talk to it yet: it may be away.
    pub async fn cluster(options: ClusterOptions) -> Result<Self, ConnectError> {
        let cluster = Cluster::connect(options).await?;
        Ok(Self { kind: SourceKind::Cluster(cluster), stats: Arc::default() })
    }

    /// A directory of YAML and JSON files, which must exist.
    pub fn manifests(options: ManifestOptions) -> Result<Self, ManifestError> {
        let manifests = Manifests::open(options)?;
        Ok(Self { kind: SourceKind::Manifests(manifests), stats: Arc::default() })
    }

    /// What the source counts; stays valid after [`run`](Self::run) took the source.
    pub fn stats(&self) -> Arc<SourceStats> {
        self.stats.clone()
    }

    /// Where to tell operators what they should know of a Service. Needs a tokio runtime.
    pub fn reporter(&self) -> Reporter {
        match &self.kind {
            SourceKind::Cluster(cluster) => cluster.reporter(),
            SourceKind::Manifests(_) => Reporter::silent(),
        }
    }

    /// The ranges that cluster IPs are taken from (`ServiceCIDR` objects, S-23), all of them with every change, for as
    /// long as the receiver lives; `None` where nobody tells. Needs a tokio runtime.
    pub fn service_ranges(&self) -> Option<mpsc::Receiver<BTreeSet<Cidr>>> {
        let SourceKind::Cluster(cluster) = &self.kind else { return None };
        let (receiver, follow) = cluster.follow_service_ranges(self.stats());
        tokio::spawn(follow);
        Some(receiver)
    }

    /// Sends events until the receiver is dropped. Whatever goes wrong on the way is logged and retried: what is
    /// known stays in force.
    pub async fn run(self, events: mpsc::Sender<Event>) {
        match self.kind {
            SourceKind::Cluster(cluster) => cluster.run(events, self.stats).await,
            SourceKind::Manifests(manifests) => manifests.run(events, self.stats).await,
        }
    }
}
