//! Pacing, retries, and that nothing is lost on the way. No test sleeps: time is passed in, or paused.

use super::*;
use crate::index::store::tests::{service, slice};
use crate::index::{Change, StoreEvent};
use crate::model::NodeFacts;

/// A sink that writes down what it is given, and fails when told to.
#[derive(Default)]
struct Recorder {
    batches: Vec<(bool, Vec<String>)>,
    fail: Option<Failed>,
}

impl PlanSink for Recorder {
    fn apply(
        &mut self,
        full: bool,
        changes: &mut dyn Iterator<Item = PlanChange>,
    ) -> Result<(), ApplyFailure> {
        let name = |change: PlanChange| {
            let gone = if change.plan.is_none() { "-" } else { "" };
            format!("{gone}{}", change.service.name)
        };
        self.batches.push((full, changes.map(name).collect()));
        match self.fail.clone() {
            Some(failed) => Err(ApplyFailure { failed, reason: "told to".into() }),
            None => Ok(()),
        }
    }
}

impl Recorder {
    fn last(&self) -> (bool, Vec<&str>) {
        let (full, names) = self.batches.last().expect("a batch");
        (*full, names.iter().map(String::as_str).collect())
    }
}

struct Bench {
    engine: Engine,
    sink: Recorder,
    now: Instant,
}

impl Bench {
    /// A synced engine with the Services `a`, `b` and `c`, after its first round.
    fn new() -> Self {
        let mut bench = Self {
            engine: Engine::new(EngineConfig::default()),
            sink: Recorder::default(),
            now: Instant::now(),
        };
        bench.sync();
        assert_eq!(bench.sink.last(), (true, vec!["a", "b", "c"]));
        bench
    }

    fn sync(&mut self) {
        self.handle(Change::Node(NodeFacts::default()));
        self.handle(Change::Services(StoreEvent::Reset(["a", "b", "c"].map(service).to_vec())));
        assert!(self.round().is_none(), "not synced yet");
        self.handle(Change::Slices(StoreEvent::Reset(Vec::new())));
        self.round();
    }

    fn handle(&mut self, change: Change) {
        self.engine.handle(Event { received: self.now, triggered: None, change });
    }

    fn change(&mut self, service: &str, endpoint: u8) {
        self.handle(Change::Slices(StoreEvent::Apply(slice(&format!("{service}-1"), service, &[endpoint]))));
    }

    fn round(&mut self) -> Option<Round> {
        let now = self.now;
        self.engine.run_due(now, || now, &mut self.sink)
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now += Duration::from_millis(milliseconds);
    }

    fn due_in(&self) -> Option<Duration> {
        self.engine.next_due(self.now).map(|due| due.saturating_duration_since(self.now))
    }
}

#[test]
fn the_first_change_after_idle_is_due_at_once() {
    let mut bench = Bench::new();
    assert_eq!(bench.due_in(), None);
    bench.pass(1000);
    bench.change("a", 1);
    assert_eq!(bench.due_in(), Some(Duration::ZERO));
    let round = bench.round().unwrap();
    assert_eq!(bench.sink.last(), (false, vec!["a"]));
    assert_eq!(round.applied[0].received, Some(bench.now));
    assert_eq!(bench.due_in(), None);
}

#[test]
fn a_storm_costs_one_round_an_interval_and_loses_nothing() {
    let mut bench = Bench::new();
    bench.pass(1000);
    let before = bench.sink.batches.len();
    for step in 0..100 {
        bench.change(["a", "b", "c"][step % 3], (step % 200) as u8);
        bench.round();
        bench.pass(1);
    }
    let rounds = bench.sink.batches.len() - before;
    assert!((18..=21).contains(&rounds), "{rounds} rounds in 100 ms at 5 ms");
    bench.pass(5);
    bench.round();
    assert_eq!(bench.due_in(), None);
    for name in ["a", "b", "c"] {
        let plan = bench.engine.index().plan(&ObjectName::new("ns", name)).unwrap();
        assert_eq!(plan.ports[0].endpoints.len(), 1);
    }
}

#[test]
fn the_second_change_waits_for_the_interval() {
    let mut bench = Bench::new();
    bench.pass(1000);
    bench.change("a", 1);
    bench.round();
    bench.pass(2);
    bench.change("a", 2);
    bench.change("b", 2);
    assert_eq!(bench.due_in(), Some(Duration::from_millis(3)));
    assert!(bench.round().is_none());
    bench.pass(3);
    assert!(bench.round().is_some());
    assert_eq!(bench.sink.last(), (false, vec!["a", "b"]));
}

#[test]
fn a_failed_batch_is_retried_with_growing_delays() {
    let mut bench = Bench::new();
    bench.pass(1000);
    bench.sink.fail = Some(Failed::All);
    bench.change("a", 1);
    let mut delays = Vec::new();
    for _ in 0..9 {
        let round = bench.round().expect("a round");
        assert!(round.failure.is_some() && round.applied.is_empty());
        delays.push(bench.due_in().unwrap().as_millis() as u64);
        bench.pass(*delays.last().unwrap());
    }
    assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    // What changed meanwhile goes along, and the change waited for is the oldest.
    let first = bench.now;
    bench.change("b", 1);
    bench.handle(Change::Services(StoreEvent::Delete(ObjectName::new("ns", "c"))));
    bench.sink.fail = None;
    let round = bench.round().unwrap();
    assert_eq!(bench.sink.last(), (false, vec!["a", "b", "-c"]));
    assert!(round.applied[0].received.unwrap() < first);
    assert_eq!(bench.due_in(), None);
    // And the next failure starts with the short delay again.
    bench.pass(1000);
    bench.sink.fail = Some(Failed::All);
    bench.change("a", 2);
    bench.round();
    assert_eq!(bench.due_in(), Some(Duration::from_millis(100)));
}

#[test]
fn only_what_failed_is_retried() {
    let mut bench = Bench::new();
    bench.pass(1000);
    bench.sink.fail = Some(Failed::Services(vec![ObjectName::new("ns", "b")]));
    bench.change("a", 1);
    bench.change("b", 1);
    let round = bench.round().unwrap();
    assert_eq!(round.applied.iter().map(|c| &*c.service.name).collect::<Vec<_>>(), ["a"]);
    bench.sink.fail = None;
    bench.pass(100);
    assert!(bench.round().is_some());
    assert_eq!(bench.sink.last(), (false, vec!["b"]));
}

#[test]
fn a_failed_full_batch_stays_full() {
    let mut bench = Bench {
        engine: Engine::new(EngineConfig::default()),
        sink: Recorder::default(),
        now: Instant::now(),
    };
    bench.sink.fail = Some(Failed::All);
    bench.sync();
    assert_eq!(bench.sink.last(), (true, vec!["a", "b", "c"]));
    bench.handle(Change::Services(StoreEvent::Delete(ObjectName::new("ns", "b"))));
    bench.sink.fail = None;
    bench.pass(100);
    bench.round();
    assert_eq!(bench.sink.last(), (true, vec!["a", "c"]));
    bench.pass(100);
    bench.change("a", 1);
    bench.round();
    assert_eq!(bench.sink.last(), (false, vec!["a"]));
}

/// A sink that passes the names in each batch on.
struct Forward(mpsc::UnboundedSender<Vec<String>>);

impl PlanSink for Forward {
    fn apply(&mut self, _: bool, changes: &mut dyn Iterator<Item = PlanChange>) -> Result<(), ApplyFailure> {
        let names = changes.map(|change| change.service.name.to_string()).collect();
        self.0.send(names).map_err(ApplyFailure::all)
    }
}

#[tokio::test]
async fn driving_takes_in_what_is_queued_and_ends_with_the_source() {
    let (sender, events) = mpsc::channel(64);
    let (forward, mut batches) = mpsc::unbounded_channel();
    let send = async |change| sender.send(Event::now(change)).await.unwrap();
    send(Change::Node(NodeFacts::default())).await;
    send(Change::Services(StoreEvent::Reset(["a", "b", "c"].map(service).to_vec()))).await;
    send(Change::Slices(StoreEvent::Reset(Vec::new()))).await;
    for service in ["a", "b"] {
        send(Change::Slices(StoreEvent::Apply(slice(service, service, &[1])))).await;
    }
    let driver = tokio::spawn(async move {
        let mut rounds = 0;
        Engine::new(EngineConfig::default()).drive(events, &mut Forward(forward), |_| rounds += 1).await;
        rounds
    });
    assert_eq!(batches.recv().await.unwrap(), ["a", "b", "c"], "what is queued is one round");
    for endpoint in [1, 2] {
        send(Change::Slices(StoreEvent::Apply(slice("c", "c", &[endpoint])))).await;
        assert_eq!(batches.recv().await.unwrap(), ["c"]);
    }
    // Too early for another round, and yet not lost when the source ends.
    send(Change::Slices(StoreEvent::Delete(ObjectName::new("ns", "c")))).await;
    drop(sender);
    assert_eq!(batches.recv().await.unwrap(), ["c"]);
    assert_eq!(driver.await.unwrap(), 4);
}
