//! `/metrics`, `/configz`, `/proxyMode` and `/healthz` of the metrics server (S-62).

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;
use tracing::warn;

use super::http::{Answer, answer};
use super::not_found;
use crate::live::Knobs;
use crate::metrics::Scrape;

/// What `/proxyMode` says, where kube-proxy says iptables, ipvs or nftables.
pub(crate) const MODE: &str = "ebpf";

const TEXT: &str = "text/plain; charset=utf-8";
/// The text format of Prometheus, version 0.0.4.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers of the metrics server.
#[derive(Clone)]
pub struct StatusAnswers(Arc<Inner>);

struct Inner {
    /// One at a time: scrapers that come too often wait for each other.
    scrape: Mutex<Arc<Scrape>>,
    configuration: Value,
    knobs: Knobs,
}

impl StatusAnswers {
    /// `configuration`: what `/configz` says.
    /// Where knobs were set since, it says that, too.
    pub fn new(scrape: Scrape, configuration: Value, knobs: Knobs) -> Self {
        Self(Arc::new(Inner { scrape: Mutex::new(Arc::new(scrape)), configuration, knobs }))
    }

    /// The answer to a path.
    pub async fn answer(&self, path: &str) -> Answer {
        match path {
            "/metrics" => self.metrics().await,
            "/proxyMode" => answer(StatusCode::OK, TEXT, MODE),
            // kube-proxy's metrics server says so as soon as it runs; how the proxy is, is told by the other server.
            "/healthz" => answer(StatusCode::OK, TEXT, "ok"),
            "/configz" => {
                let text = serde_json::to_string_pretty(&self.configuration()).unwrap_or_default();
                answer(StatusCode::OK, "application/json", text)
            }
            "/" => answer(StatusCode::OK, "application/json", json!({"paths": PATHS}).to_string()),
            _ => not_found(),
        }
    }

    fn configuration(&self) -> Value {
        let mut configuration = self.0.configuration.clone();
        let knobs: Map<String, Value> =
            self.0.knobs.all().into_iter().map(|knob| (knob.name, knob.value.into())).collect();
        configuration["lb-agent"]["knobs"] = knobs.into();
        configuration
    }

    async fn metrics(&self) -> Answer {
        let scrape = self.0.scrape.lock().await;
        let working = scrape.clone();
        // Thousands of system calls where there are thousands of Services.
        match tokio::task::spawn_blocking(move || working.text()).await {
            Ok(Ok(text)) => answer(StatusCode::OK, METRICS, text),
            Ok(Err(error)) => {
                warn!(error = &error as &dyn std::error::Error, "metrics cannot be read");
                answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n"))
            }
            Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        }
    }
}

/// What there is.
const PATHS: [&str; 4] = ["/configz", "/healthz", "/metrics", "/proxyMode"];
