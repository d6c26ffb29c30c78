//! The demo: a small cluster in which everything a Kubernetes Service promises is tried, told step by step, every claim
//! checked.
//!
//! `lb-demo` tells it to people, the tests run the same steps in every shape, family and forwarding mode.

mod agents;
mod counters;
mod latency;
mod names;
mod numbers;
mod refusals;
mod scaling;
mod shop;
mod snackbar;
mod standing;
mod teller;

use std::{future::Future, pin::Pin};

use crate::{
    cluster::{Cluster, Forwarding},
    lab::{Family, Shape},
};

pub use teller::Teller;

/// What the demo's cluster shall be like.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many nodes.
    pub nodes: u32,
    /// How agents forward.
    pub forwarding: Forwarding,
    /// How pods are connected.
    pub shape: Shape,
    /// Which address families exist.
    pub family: Family,
}

/// Where the story plays, and who tells it.
pub struct Stage {
    /// The cluster.
    pub cluster: Cluster,
    /// Prints, and remembers what did not hold.
    pub teller: Teller,
}

type Step = for<'a> fn(&'a mut Stage) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// The story, after the cluster stands: titles and steps.
const STEPS: &[(&str, Step)] = &[
    ("The snack bar: a pod finds and reaches another Service", |stage| Box::pin(snackbar::tell(stage))),
    ("DNS itself is a Service: UDP and TCP through the ClusterIP of kube-dns", |stage| {
        Box::pin(names::dns(stage))
    }),
    ("A database on port 3306, and a Service found through a variable", |stage| Box::pin(shop::tell(stage))),
    ("Headless, ExternalName, hand-made endpoints, the same name twice", |stage| {
        Box::pin(names::kinds(stage))
    }),
    ("A Service that no pod stands behind is refused at once", |stage| Box::pin(refusals::nobody(stage))),
    ("ping of a ClusterIP", |stage| Box::pin(refusals::ping_cluster_ip(stage))),
    ("All pods of numbers-api are replaced under a client's loop", |stage| Box::pin(numbers::tell(stage))),
    ("Scaling payment: 2 pods, none, 3 pods", |stage| Box::pin(scaling::tell(stage))),
    ("The agent is killed under load, and comes back", |stage| Box::pin(agents::kill(stage))),
    ("How long an endpoint change takes from the API server to the kernel", |stage| {
        Box::pin(latency::tell(stage))
    }),
    ("What the kernel counted", |stage| Box::pin(counters::tell(stage))),
];

/// Builds the cluster and tells the story to its end, whatever holds. The stage is still standing when this returns.
///
/// # Errors
/// The cluster does not come up: then there is nothing to tell.
pub async fn play(options: Options, mut teller: Teller) -> anyhow::Result<Stage> {
    teller.step(&standing::title(options));
    let cluster = standing::build(options).await?;
    let mut stage = Stage { cluster, teller };
    stage.act(|stage| Box::pin(standing::tell(stage))).await;
    for (title, step) in STEPS {
        stage.teller.step(title);
        stage.act(*step).await;
    }
    Ok(stage)
}

impl Stage {
    /// Runs a step; what keeps it from going on is a check that does not hold.
    async fn act(&mut self, step: Step) {
        let failed_before = self.teller.failures().len();
        if let Err(error) = step(self).await {
            self.teller.failed(&format!("{error:#}"));
        }
        if self.teller.failures().len() > failed_before {
            self.teller.aside(&self.cluster.log_tails(15));
        }
    }
}
