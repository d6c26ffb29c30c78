//! The planner's scenarios: text files of steps (`tests/scenarios/*.txt`) with the plans they must lead to.
//!
//! A file is a sequence of sections. `-- node --` sets our node (`name [zone]`), `-- proxy-name --` starts over as the
//! proxy of that name, `-- apply --` applies Kubernetes YAML, `-- delete --` names objects to delete (`service a/b`),
//! and `-- expect --` says what the round of planning due after these steps hands out. Text before the first section
//! is a comment. With `UPDATE_EXPECT=1` the expectations are written instead of compared.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lb_agent::index::{ApplyFailure, Change, Engine, EngineConfig, Event, PlanSink, StoreEvent};
use lb_agent::k8s::{ManifestDecoder, Selection, SourceStats};
use lb_agent::model::{NodeFacts, ObjectName};
use lb_agent::plan::PlanChange;

#[test]
fn scenarios() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&directory).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 15, "scenario files are missing from {}", directory.display());
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut failures = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let actual = run(&text);
        if actual == text {
            continue;
        }
        if update {
            std::fs::write(&file, actual).unwrap();
        } else {
            failures.push(format!("{}:\n{}", file.display(), difference(&text, &actual)));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Runs a scenario and returns its text with the expectations as they came out.
fn run(text: &str) -> String {
    let mut out = String::new();
    let mut scenario = Scenario::new(Selection::default());
    for (header, body) in sections(text) {
        let _ = match header {
            None => write!(out, "{body}"),
            Some(header) => writeln!(out, "-- {header} --"),
        };
        match header {
            None => continue,
            Some("expect") => {
                let expectation = scenario.round();
                let _ = writeln!(out, "{expectation}");
                continue;
            }
            Some("node") => scenario.node(body),
            Some("proxy-name") => {
                scenario = Scenario::new(Selection {
                    service_proxy_name: Some(body.trim().to_owned()),
                    ..Selection::default()
                });
            }
            Some("apply") => scenario.apply(body),
            Some("delete") => scenario.delete(body),
            Some(other) => panic!("unknown section {other:?}"),
        }
        out.push_str(body);
    }
    // Exactly one newline at the end.
    format!("{}\n", out.trim_end())
}

/// The sections of a file; the first has no header.
fn sections(text: &str) -> Vec<(Option<&str>, &str)> {
    let mut out = Vec::new();
    let mut current = None;
    let mut start = 0;
    let mut position = 0;
    for line in text.split_inclusive('\n') {
        if let Some(name) = line.trim_end().strip_prefix("-- ").and_then(|rest| rest.strip_suffix(" --")) {
            out.push((current, &text[start..position]));
            current = Some(name);
            start = position + line.len();
        }
        position += line.len();
    }
    out.push((current, &text[start..]));
    out
}

struct Scenario {
    engine: Engine,
    decoder: ManifestDecoder,
    stats: Arc<SourceStats>,
    notes: String,
    now: Instant,
    counted: (u64, u64),
}

impl Scenario {
    /// An engine that knows that there is nothing, on node `node-a` in zone `zone-a`.
    fn new(selection: Selection) -> Self {
        let stats = Arc::<SourceStats>::default();
        let mut scenario = Self {
            engine: Engine::new(EngineConfig::default()),
            decoder: ManifestDecoder::new(selection, stats.clone()),
            stats,
            notes: String::new(),
            now: Instant::now(),
            counted: (0, 0),
        };
        scenario.node("node-a zone-a");
        scenario.handle(Change::Services(StoreEvent::Reset(Vec::new())));
        scenario.handle(Change::Slices(StoreEvent::Reset(Vec::new())));
        assert!(scenario.round().is_empty(), "nothing known, nothing planned");
        scenario
    }

    fn handle(&mut self, change: Change) {
        self.engine.handle(Event { received: self.now, triggered: None, change });
    }

    fn node(&mut self, body: &str) {
        let mut words = body.split_whitespace();
        let name = words.next().unwrap_or_default().into();
        self.handle(Change::Node(NodeFacts { name, zone: words.next().map(Into::into) }));
    }

    fn apply(&mut self, body: &str) {
        match self.decoder.yaml(body) {
            Ok(changes) => changes.into_iter().for_each(|change| self.handle(change)),
            Err(error) => {
                let _ = writeln!(self.notes, "no YAML: {}", error.lines().next().unwrap_or_default());
            }
        }
    }

    fn delete(&mut self, body: &str) {
        for line in body.lines().filter(|line| !line.trim().is_empty()) {
            let (kind, name) = line.split_once(' ').expect("kind and name");
            let (namespace, name) = name.trim().split_once('/').expect("namespace/name");
            let name = ObjectName::new(namespace, name);
            self.handle(match kind {
                "service" => Change::Services(StoreEvent::Delete(name)),
                "slice" => Change::Slices(StoreEvent::Delete(name)),
                other => panic!("unknown kind {other:?}"),
            });
        }
    }

    /// What a round of planning hands out now, and what had to be skipped on the way.
    fn round(&mut self) -> String {
        self.now += Duration::from_secs(1);
        let now = self.now;
        let mut sink = Recorder::default();
        let round = self.engine.run_due(now, || now, &mut sink);
        let mut out = std::mem::take(&mut self.notes);
        let counted = (
            self.stats.objects_skipped.load(Ordering::Relaxed),
            self.stats.fields_skipped.load(Ordering::Relaxed),
        );
        if counted != self.counted {
            let (objects, fields) = (counted.0 - self.counted.0, counted.1 - self.counted.1);
            let _ = writeln!(out, "skipped: {objects} objects, {fields} fields");
            self.counted = counted;
        }
        match round {
            Some(_) => out.push_str(&sink.text),
            None => out.push_str("no change\n"),
        }
        out
    }
}

#[derive(Default)]
struct Recorder {
    text: String,
}

impl PlanSink for Recorder {
    fn apply(&mut self, _: bool, changes: &mut dyn Iterator<Item = PlanChange>) -> Result<(), ApplyFailure> {
        for change in changes {
            let _ = write!(self.text, "{change}");
        }
        Ok(())
    }
}

/// The first line that differs, with some of what surrounds it.
fn difference(expected: &str, actual: &str) -> String {
    let (expected, actual): (Vec<_>, Vec<_>) = (expected.lines().collect(), actual.lines().collect());
    let at = expected.iter().zip(&actual).take_while(|(a, b)| a == b).count();
    let around = |lines: &[&str]| {
        lines.iter().skip(at.saturating_sub(4)).take(12).copied().collect::<Vec<_>>().join("\n")
    };
    format!("line {}\n--- expected\n{}\n--- actual\n{}\n", at + 1, around(&expected), around(&actual))
}
