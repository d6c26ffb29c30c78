//! When the change happened that a slice is written for.

use std::{collections::HashMap, sync::Arc};

use serde_json::Value;

use super::super::ready_condition;
use crate::apiserver::text;

/// The times already seen of a Service and its pods.
#[derive(Debug, Default)]
pub(super) struct TriggerTimes {
    service: String,
    pods: HashMap<String, String>,
}

impl TriggerTimes {
    /// The earliest time that is news, if any: what `endpoints.kubernetes.io/last-change-trigger-time` says. Times are
    /// RFC 3339 text of one zone and precision, so that they compare as text.
    pub(super) fn next(&mut self, service: &Value, pods: &[Arc<Value>]) -> Option<String> {
        let mut news = Vec::new();
        let created = text(service, "/metadata/creationTimestamp");
        if created > self.service.as_str() {
            news.push(created.to_owned());
            self.service = created.to_owned();
        }
        let mut seen = HashMap::new();
        for pod in pods {
            let ready = ready_condition(pod).and_then(|condition| condition["lastTransitionTime"].as_str());
            let time = ready.unwrap_or_else(|| text(pod, "/metadata/creationTimestamp"));
            let name = text(pod, "/metadata/name");
            if self.pods.get(name).is_none_or(|before| time > before.as_str()) {
                news.push(time.to_owned());
            }
            seen.insert(name.to_owned(), time.to_owned());
        }
        self.pods = seen;
        news.into_iter().min()
    }
}
