//! Events (events.k8s.io): what an operator should know of a Service, told where `kubectl describe service` shows it.
//!
//! Never waits, never fails: an event that cannot be told, for lack of permission, of a server or of room, is left out.
//! The log has said the same already.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::debug;

use super::trouble::chain;
use crate::model::ObjectName;

/// Reports that wait to be sent, at most.
const QUEUE: usize = 64;
/// Events that may be sent at once; further ones wait.
const BURST: u32 = 20;
/// One more after each such time.
const REFILL: Duration = Duration::from_secs(5);
/// The same is not told again for this long.
const SAME: Duration = Duration::from_secs(600);
/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(10);
/// How long nothing is sent after the server said that we may not.
const REFUSED: Duration = Duration::from_secs(300);
/// The longest note that the API takes, in bytes.
const LONGEST_NOTE: usize = 1024;
/// The longest name of a reporting instance, in bytes.
const LONGEST_INSTANCE: usize = 128;
/// Who says it.
const CONTROLLER: &str = "lb-agent";

/// Something to be told of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Report {
    /// The Service.
    pub service: ObjectName,
    /// Why, in one word, for programs.
    pub reason: &'static str,
    /// What was tried, in one word.
    pub action: &'static str,
    /// What happened, for people.
    pub note: String,
}

/// Where reports go.
#[derive(Clone, Debug)]
pub struct Reporter(Option<mpsc::Sender<Report>>);

impl Reporter {
    /// Where there is no API server: nobody is told.
    pub(super) const fn silent() -> Self {
        Self(None)
    }

    /// Sends events to an API server, for as long as the reporter or a copy of it lives. Needs a tokio runtime.
    pub(super) fn start(client: Client, node: String) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(send_all(client, node, receiver));
        Self(Some(sender))
    }

    /// Has something told; returns at once.
    pub fn report(&self, report: Report) {
        let Some(sender) = &self.0 else { return };
        if let Err(error) = sender.try_send(report) {
            debug!(%error, "event left out");
        }
    }
}

async fn send_all(client: Client, node: String, mut reports: mpsc::Receiver<Report>) {
    let (mut pace, mut told) = (Pace::new(Instant::now()), Told::default());
    let mut not_before = Instant::now();
    while let Some(report) = reports.recv().await {
        let now = Instant::now();
        if now < not_before || !told.is_new(&report, now) {
            continue;
        }
        tokio::time::sleep(pace.delay(now)).await;
        match timeout(REQUEST, send(&client, &node, &report)).await {
            Ok(Ok(())) => debug!(service = %report.service, reason = report.reason, "event sent"),
            Ok(Err(error)) => {
                debug!(service = %report.service, error = chain(&error), "event not sent");
                if matches!(&error, kube::Error::Api(status) if matches!(status.code, 401 | 403 | 404 | 405))
                {
                    not_before = Instant::now() + REFUSED;
                }
            }
            Err(_) => debug!(service = %report.service, "event not sent: no answer"),
        }
    }
}

async fn send(client: &Client, node: &str, report: &Report) -> Result<(), kube::Error> {
    let ObjectName { namespace, name } = &report.service;
    // Tools find the events of an object by its uid, too. A list, because that is what our account may do anyway.
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let found = services.list(&ListParams::default().fields(&format!("metadata.name={name}"))).await?;
    let uid = found.items.into_iter().find_map(|service| {
        (service.metadata.name.as_deref() == Some(&**name)).then_some(service.metadata.uid).flatten()
    });
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    events.create(&PostParams::default(), &event(report, node, uid, Timestamp::now())).await.map(drop)
}

fn event(report: &Report, node: &str, uid: Option<String>, now: Timestamp) -> Event {
    let ObjectName { namespace, name } = &report.service;
    Event {
        metadata: ObjectMeta {
            // As other components name theirs: the object, and a number that is used once.
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace.to_string()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(shortened(format!("{CONTROLLER}-{node}"), LONGEST_INSTANCE)),
        action: Some(report.action.to_owned()),
        reason: Some(report.reason.to_owned()),
        type_: Some("Warning".to_owned()),
        note: Some(shortened(report.note.clone(), LONGEST_NOTE)),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(namespace.to_string()),
            name: Some(name.to_string()),
            uid,
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

/// The text, its end left out where it is longer than that many bytes.
fn shortened(mut text: String, longest: usize) -> String {
    while text.len() > longest {
        text.pop();
    }
    text
}

/// Lets a burst through, then one at a time.
#[derive(Debug)]
struct Pace {
    left: u32,
    since: Instant,
}

impl Pace {
    const fn new(now: Instant) -> Self {
        Self { left: BURST, since: now }
    }

    /// How long the next one has to wait.
    fn delay(&mut self, now: Instant) -> Duration {
        let gained = (now.saturating_duration_since(self.since).as_secs() / REFILL.as_secs()) as u32;
        if gained > 0 {
            self.left = self.left.saturating_add(gained).min(BURST);
            self.since = now;
        }
        if self.left == 0 {
            return REFILL;
        }
        self.left -= 1;
        Duration::ZERO
    }
}

/// What was told, and when.
#[derive(Debug, Default)]
struct Told(HashMap<Report, Instant>);

impl Told {
    fn is_new(&mut self, report: &Report, now: Instant) -> bool {
        self.0.retain(|_, when| now.saturating_duration_since(*when) < SAME);
        if self.0.contains_key(report) {
            return false;
        }
        self.0.insert(report.clone(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(note: &str) -> Report {
        Report {
            service: ObjectName::new("shop", "web"),
            reason: "FailedToStartServiceHealthcheck",
            action: "StartServiceHealthcheck",
            note: note.to_owned(),
        }
    }

    #[test]
    fn a_burst_goes_out_at_once_and_then_one_at_a_time() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for _ in 0..BURST {
            assert_eq!(pace.delay(start), Duration::ZERO);
        }
        assert_eq!(pace.delay(start), REFILL);
        assert_eq!(pace.delay(start + REFILL * 2), Duration::ZERO);
        assert_eq!(pace.delay(start + REFILL * 2), Duration::ZERO);
        assert_eq!(pace.delay(start + REFILL * 2), REFILL);
        let rested = start + REFILL * 10_000;
        let at_once = (0..100).take_while(|_| pace.delay(rested).is_zero()).count();
        assert_eq!(at_once as u32, BURST);
    }

    #[test]
    fn the_same_is_not_told_again_for_a_while() {
        let (mut told, start) = (Told::default(), Instant::now());
        assert!(told.is_new(&report("a"), start));
        assert!(!told.is_new(&report("a"), start + SAME / 2));
        assert!(told.is_new(&report("b"), start + SAME / 2));
        assert!(told.is_new(&report("a"), start + SAME));
    }

    #[test]
    fn an_event_is_about_its_service_and_no_longer_than_the_api_takes() {
        let now: Timestamp = "2026-01-02T03:04:05.000006Z".parse().unwrap();
        let told = event(&report(&"ü".repeat(1000)), "n1", Some("u-1".into()), now);
        let value = serde_json::to_value(&told).unwrap();
        assert_eq!(value["apiVersion"], "events.k8s.io/v1");
        assert_eq!(value["type"], "Warning");
        assert_eq!(value["eventTime"], "2026-01-02T03:04:05.000006Z");
        assert_eq!(value["reportingInstance"], "lb-agent-n1");
        assert_eq!(value["regarding"]["uid"], "u-1");
        assert_eq!(value["regarding"]["name"], "web");
        assert_eq!(value["metadata"]["namespace"], "shop");
        assert!(value["metadata"]["name"].as_str().unwrap().starts_with("web."));
        assert_eq!(told.note.unwrap().len(), LONGEST_NOTE);
    }
}
