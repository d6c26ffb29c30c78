//! `/healthz` and `/livez` (S-60), in the words that load balancers and the e2e suite know.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::StatusCode;
use jiff::Timestamp;
use serde::Serialize;

use super::http::{Answer, answer};
use super::not_found;
use crate::health::Health;
use crate::k8s::SourceStats;
use crate::metrics::Metrics;

/// Go's zero time: what kube-proxy says where nothing was updated yet.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Answers of the health server.
#[derive(Clone, Debug)]
pub struct ProxyAnswers {
    /// What knows whether the tables keep up.
    pub health: Health,
    /// What knows whether the node is about to go.
    pub source: Arc<SourceStats>,
    /// Where answers are counted.
    pub metrics: Arc<Metrics>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: BTreeMap<&'static str, Family>,
    /// Services that are not in the tables as they should be, which alone is no reason to leave the node out.
    late_services: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Family {
    last_updated: String,
    healthy: bool,
}

impl ProxyAnswers {
    /// The answer to a path.
    pub fn answer(&self, path: &str) -> Answer {
        match path {
            "/healthz" => self.health(true),
            "/livez" => self.health(false),
            _ => not_found(),
        }
    }

    /// For load balancers also whether the node goes on: one that is about to be removed gets no new connections, but
    /// is alive and not to be restarted.
    fn health(&self, for_load_balancers: bool) -> Answer {
        let eligible = self.source.node_is_eligible();
        let proxy = self.health.proxy();
        let now = Timestamp::now();
        let healthy = proxy.healthy && (eligible || !for_load_balancers);
        // As kube-proxy: who is healthy is up to date.
        let updated = |healthy: bool| match (healthy, proxy.last_updated) {
            (true, _) => now.to_string(),
            (false, Some(updated)) => updated.to_string(),
            (false, None) => NEVER.to_owned(),
        };
        // A round of changes is of both families.
        let family = || Family { last_updated: updated(proxy.healthy), healthy: proxy.healthy };
        let body = Body {
            last_updated: updated(healthy),
            current_time: now.to_string(),
            node_eligible: for_load_balancers.then_some(eligible),
            healthy,
            status: BTreeMap::from([("IPv4", family()), ("IPv6", family())]),
            late_services: proxy.late_services,
        };
        let counter = if for_load_balancers { &self.metrics.healthz } else { &self.metrics.livez };
        counter.count(healthy);
        let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        // Strings, numbers and booleans: nothing that could not be written.
        answer(status, "application/json", serde_json::to_vec(&body).unwrap_or_default())
    }
}
