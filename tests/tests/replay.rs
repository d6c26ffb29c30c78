//! The recorded streams of a real API server, replayed over HTTP through the client, the source and the planner.
//!
//! Every scenario runs twice, as list and watch and as streaming list, and must plan the same. The event of the next
//! resource version is sent when the engine has seen the one before, so that the outcome depends on nothing else.
//! `tests/data/replay/*.txt` say what every event has to change; `UPDATE_EXPECT=1` writes them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lb_agent::index::{ApplyFailure, Engine, EngineConfig, Event, PlanSink};
use lb_agent::k8s::{ClusterOptions, Selection, Source};
use lb_agent::model::ObjectName;
use lb_agent::plan::{Frontend, PlanChange, ServicePlan, ServicePortPlan, Verdict};
use lb_tests::replay::{Collection, ReplayServer, status_body};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const NODES: &str = "/api/v1/nodes";
const NODE: &str = "node-1";

fn data(directory: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(directory)
}

fn recorded(file: &str) -> Bytes {
    let path = data("kube-captures").join(file);
    Bytes::from(std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// The lines of a recorded watch, each with its line end, version and object.
fn lines(file: &str) -> Vec<Line> {
    let text = String::from_utf8(recorded(file).to_vec()).unwrap();
    text.split_inclusive('\n').filter(|line| !line.trim().is_empty()).map(Line::new).collect()
}

#[derive(Clone)]
struct Line {
    text: Bytes,
    kind: String,
    object: Value,
}

impl Line {
    fn new(text: &str) -> Self {
        let mut value: Value = serde_json::from_str(text).unwrap();
        Self {
            text: Bytes::from(text.to_owned()),
            kind: value["type"].as_str().unwrap().to_owned(),
            object: value["object"].take(),
        }
    }

    fn version(&self) -> u64 {
        self.object["metadata"]["resourceVersion"].as_str().map_or(0, |version| version.parse().unwrap())
    }

    fn ends_list(&self) -> bool {
        self.object["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true"
    }

    fn title(&self) -> String {
        let metadata = &self.object["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, namespace, name) =
            (text(&self.object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]));
        format!("{} {} {kind} {namespace}/{name}", self.version(), self.kind)
    }
}

/// The nodes as recorded; nothing of a streaming list of theirs is, so that one is made of the list.
fn nodes(streaming: bool) -> Collection {
    let list = recorded("00-base.nodes.list.json");
    let value: Value = serde_json::from_slice(&list).unwrap();
    let line = |kind: &str, object: Value| {
        Bytes::from(format!("{}\n", serde_json::json!({"type": kind, "object": object})))
    };
    let mut initial: Vec<_> =
        value["items"].as_array().unwrap().iter().map(|node| line("ADDED", node.clone())).collect();
    let end = serde_json::json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": {"resourceVersion": value["metadata"]["resourceVersion"], "annotations": {"k8s.io/initial-events-end": "true"}},
    });
    initial.push(line("BOOKMARK", end));
    Collection { list, initial: streaming.then_some(initial), ..Collection::default() }
}

/// One scenario: what is there at first, and what happens then, in the order of versions.
struct Recording {
    collections: HashMap<String, Collection>,
    events: Vec<(&'static str, Line)>,
}

fn recording(name: &str, streaming: bool) -> Recording {
    let mut collections = HashMap::from([(NODES.to_owned(), nodes(streaming))]);
    let mut events = Vec::new();
    for (path, resource) in [(SERVICES, "services"), (SLICES, "endpointslices")] {
        let list = recorded(&format!("{name}.{resource}.list.json"));
        if streaming {
            let mut lines = lines(&format!("{name}.{resource}.watchlist.jsonl"));
            let end = lines.iter().position(Line::ends_list).expect("the end of the streaming list");
            let rest = lines.split_off(end + 1);
            let initial = Some(lines.into_iter().map(|line| line.text).collect());
            collections.insert(path.to_owned(), Collection { list, initial, ..Collection::default() });
            events.extend(rest.into_iter().map(|line| (path, line)));
        } else {
            collections.insert(path.to_owned(), Collection { list, ..Collection::default() });
            let lines = lines(&format!("{name}.{resource}.watch.jsonl"));
            events.extend(lines.into_iter().map(|line| (path, line)));
        }
    }
    events.sort_by_key(|(_, line)| line.version());
    Recording { collections, events }
}

/// A server, a source that reads from it, and an engine that is fed by the test.
struct Bench {
    server: ReplayServer,
    events: mpsc::Receiver<Event>,
    source: JoinHandle<()>,
    engine: Engine,
    plans: Plans,
    now: Instant,
    _kubeconfig: tempfile::NamedTempFile,
}

impl Bench {
    async fn new(collections: HashMap<String, Collection>) -> Self {
        let server = ReplayServer::start(collections).await.unwrap();
        // A kubeconfig of its own keeps the machine's out of the test.
        let kubeconfig = kubeconfig();
        let source = Source::cluster(ClusterOptions {
            kubeconfig: Some(kubeconfig.path().to_owned()),
            server: Some(server.url()),
            node_name: NODE.to_owned(),
            selection: Selection::default(),
            ..ClusterOptions::default()
        })
        .await
        .unwrap();
        let (sender, events) = mpsc::channel(64);
        let source = tokio::spawn(source.run(sender));
        let engine = Engine::new(EngineConfig::default());
        let plans = Plans::default();
        Self { server, events, source, engine, plans, now: Instant::now(), _kubeconfig: kubeconfig }
    }

    /// Waits for one event of the source and hands it to the engine.
    async fn event(&mut self) {
        let event = tokio::time::timeout(Duration::from_secs(30), self.events.recv()).await;
        self.engine.handle(event.expect("an event within 30 s").expect("a living source"));
    }

    /// What the round of planning that is due now changes.
    fn round(&mut self) -> String {
        self.now += Duration::from_secs(1);
        let now = self.now;
        self.engine.run_due(now, || now, &mut self.plans);
        self.plans.take()
    }

    /// Waits for the lists of all three kinds, and plans.
    async fn start(&mut self) -> String {
        for _ in 0..3 {
            assert!(!self.engine.index().synced(), "nothing is planned before everything is listed");
            self.event().await;
        }
        assert!(self.engine.index().synced());
        self.round()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.source.abort();
    }
}

fn kubeconfig() -> tempfile::NamedTempFile {
    let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n\
                clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\nusers: [{name: u, user: {}}]\n";
    let file = tempfile::Builder::new().prefix("lbt-").suffix(".kubeconfig").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

/// The plans as they stand, one fact a line, and what the last round changed about them.
#[derive(Default)]
struct Plans {
    current: BTreeMap<ObjectName, BTreeSet<String>>,
    changes: String,
}

impl Plans {
    fn take(&mut self) -> String {
        let changes = std::mem::take(&mut self.changes);
        if changes.is_empty() { "nothing\n".to_owned() } else { changes }
    }
}

impl PlanSink for Plans {
    fn apply(&mut self, _: bool, changes: &mut dyn Iterator<Item = PlanChange>) -> Result<(), ApplyFailure> {
        for change in changes {
            let new = change.plan.as_ref().map(facts);
            let old = self.current.remove(&change.service).unwrap_or_default();
            let _ = writeln!(self.changes, "{}{}", change.service, if new.is_none() { " gone" } else { "" });
            let new = new.unwrap_or_default();
            for fact in old.difference(&new) {
                let _ = writeln!(self.changes, "  - {fact}");
            }
            for fact in new.difference(&old) {
                let _ = writeln!(self.changes, "  + {fact}");
            }
            if !new.is_empty() {
                self.current.insert(change.service, new);
            }
        }
        Ok(())
    }
}

fn facts(plan: &ServicePlan) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    if plan.ports.is_empty() {
        facts.insert("not proxied".to_owned());
    }
    for port in &plan.ports {
        let mut name = format!("{} {:?}", port.key.protocol, port.key.family).to_lowercase();
        if !port.key.port_name.is_empty() {
            let _ = write!(name, " {}", port.key.port_name);
        }
        facts.extend(port.affinity_timeout.map(|seconds| format!("{name} affinity {seconds}s")));
        facts.extend(frontend_facts(&format!("{name} internal"), &port.internal.frontends));
        facts.extend(verdict_facts(port, &format!("{name} internal"), &port.internal.verdict));
        if let Some(external) = &port.external {
            facts.extend(frontend_facts(&format!("{name} external"), &external.frontends));
            facts.extend(verdict_facts(port, &format!("{name} external"), &external.verdict));
            facts.extend(verdict_facts(port, &format!("{name} inside"), &external.inside));
            facts.extend(external.preserve_source.then(|| format!("{name} external keeps the source")));
            facts.extend(external.source_ranges.iter().map(|range| format!("{name} external from {range}")));
        }
        facts.extend(port.endpoints.iter().map(|endpoint| format!("{name} endpoint {endpoint}")));
    }
    facts.extend(plan.health_check.map(|check| {
        format!("health check {}: {} v4, {} v6", check.node_port, check.local_v4, check.local_v6)
    }));
    facts
}

fn frontend_facts(name: &str, frontends: &[Frontend]) -> Vec<String> {
    frontends.iter().map(|frontend| format!("{name} {frontend}")).collect()
}

fn verdict_facts(port: &ServicePortPlan, name: &str, verdict: &Verdict) -> Vec<String> {
    match verdict {
        Verdict::Balance(indices) => indices
            .iter()
            .map(|index| {
                let endpoint = &port.endpoints[*index as usize];
                format!("{name} -> {}", std::net::SocketAddr::new(endpoint.address, endpoint.port))
            })
            .collect(),
        Verdict::Reject => vec![format!("{name} -> reject")],
        Verdict::Drop => vec![format!("{name} -> drop")],
    }
}

/// Replays a scenario and tells what each event changed.
async fn replay(name: &str, streaming: bool) -> String {
    let recording = recording(name, streaming);
    let mut bench = Bench::new(recording.collections).await;
    let mut out = format!("# {name} as seen by {NODE} in zone-a\n\n== lists\n{}", bench.start().await);
    for (path, line) in recording.events {
        bench.server.release(path, line.version(), line.text.clone());
        // A bookmark moves only the version; the source says nothing of it.
        if line.kind != "BOOKMARK" {
            bench.event().await;
            let _ = write!(out, "\n== {}\n{}", line.title(), bench.round());
        }
    }
    let streamed = bench.server.requests().iter().any(|r| !r.contains("sendInitialEvents"));
    assert_eq!(
        streaming, !streamed,
        "with streaming lists nothing else is asked for, without them something is"
    );
    out
}

async fn check(name: &str) {
    let listed = replay(name, false).await;
    let streamed = replay(name, true).await;
    assert_eq!(listed, streamed, "{name}: list and watch, and streaming list, lead to the same plans");
    let file = data("replay").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&file, listed).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    let line = expected.lines().zip(listed.lines()).take_while(|(a, b)| a == b).count();
    let around =
        |text: &str| text.lines().skip(line.saturating_sub(6)).take(14).collect::<Vec<_>>().join("\n");
    assert!(
        expected == listed,
        "{}:{}\n--- expected\n{}\n--- actual\n{}\n",
        file.display(),
        line + 1,
        around(&expected),
        around(&listed)
    );
}

macro_rules! scenarios {
    ($($test:ident: $name:literal),* $(,)?) => {
        $(#[tokio::test]
        async fn $test() {
            check($name).await;
        })*
    };
}

scenarios! {
    scale: "01-scale",
    readiness: "02-readiness",
    terminating: "03-terminating",
    port_change: "04-portchange",
    service_delete: "05-service-delete",
    many_endpoints: "06-many-endpoints",
    dual_stack: "07-dualstack",
    headless: "08-headless",
    external_name: "09-externalname",
    selectorless: "10-selectorless",
    node_port_and_load_balancer: "11-nodeport-lb",
    policies: "12-policies",
    dns: "13-dns",
    bookmarks: "14-bookmarks",
}

/// The event of a recording with this resource version.
fn event(recording: &Recording, version: u64) -> (&'static str, Line) {
    recording.events.iter().find(|(_, line)| line.version() == version).cloned().expect("a recorded event")
}

/// A running scenario 01, and its first event, which adds an endpoint.
async fn running(streaming: bool) -> (Bench, (&'static str, Line)) {
    let recording = recording("01-scale", streaming);
    let first = event(&recording, 331);
    let mut bench = Bench::new(recording.collections).await;
    bench.start().await;
    (bench, first)
}

const ADDED: &str =
    "snackbar/order\n  + tcp v4 endpoint 10.244.1.5:8080 local\n  + tcp v4 internal -> 10.244.1.5:8080\n";

#[tokio::test]
async fn a_watch_that_ends_goes_on_where_it_was() {
    for streaming in [false, true] {
        let (mut bench, (path, line)) = running(streaming).await;
        let before = bench.server.requests().len();
        bench.server.end_watches();
        bench.server.release(path, line.version(), line.text.clone());
        bench.event().await;
        assert_eq!(bench.round(), ADDED);
        let requests = bench.server.requests().split_off(before);
        assert!(
            requests
                .iter()
                .all(|request| request.contains("watch=true") && !request.contains("sendInitialEvents")),
            "nothing is listed again: {requests:?}"
        );
        assert!(
            requests
                .iter()
                .any(|request| request.starts_with(SLICES) && request.contains("resourceVersion=326"))
        );
    }
}

#[tokio::test]
async fn gone_as_an_event_lists_again_and_removes_what_vanished() {
    for streaming in [false, true] {
        let (mut bench, _) = running(streaming).await;
        // The Service `order` is deleted while the watch is broken.
        let gone = lines("16-gone.services.watch.jsonl").remove(0);
        bench.server.replace(SERVICES, without_order(streaming));
        bench.server.release(SERVICES, 999, gone.text);
        bench.event().await;
        assert!(bench.round().starts_with("snackbar/order gone\n"));
    }
}

/// The Services of scenario 01 without `order`.
fn without_order(streaming: bool) -> Collection {
    let mut list: Value = serde_json::from_slice(&recorded("01-scale.services.list.json")).unwrap();
    let items = list["items"].as_array_mut().unwrap();
    items.retain(|item| item["metadata"]["name"] != "order");
    list["metadata"]["resourceVersion"] = "1000".into();
    let initial = lines("01-scale.services.watchlist.jsonl");
    let keep = |line: &Line| line.object["metadata"]["name"] != "order";
    let initial = initial.into_iter().filter(keep).map(|line| line.text).collect();
    let initial = streaming.then_some(initial);
    Collection { list: Bytes::from(list.to_string()), initial, ..Collection::default() }
}

#[tokio::test]
async fn gone_as_a_status_lists_again() {
    let (mut bench, _) = running(true).await;
    bench.server.refuse(Some((410, status_body(410, "Expired", "too old resource version"))));
    bench.server.end_watches();
    wait_for(|| bench.server.requests().iter().filter(|r| r.starts_with(SERVICES)).count() > 1).await;
    bench.server.replace(SERVICES, without_order(true));
    bench.server.refuse(None);
    // All three kinds are listed again; only one has changed.
    for _ in 0..3 {
        bench.event().await;
    }
    assert!(bench.round().starts_with("snackbar/order gone\n"));
}

#[tokio::test]
async fn what_is_known_stays_while_the_server_is_away() {
    let (mut bench, (path, line)) = running(true).await;
    bench.server.stop().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(bench.events.try_recv().is_err(), "silence changes nothing");
    bench.server.release(path, line.version(), line.text.clone());
    bench.server.restart().await.unwrap();
    bench.event().await;
    assert_eq!(bench.round(), ADDED, "it catches up without a new list");
}

#[tokio::test]
async fn nothing_is_planned_until_an_unwilling_server_gives_in() {
    let recording = recording("01-scale", true);
    let mut bench = Bench::new(HashMap::new()).await;
    for code in [401, 403, 500] {
        let seen = bench.server.requests().len();
        bench.server.refuse(Some((code, status_body(code, "Refused", "not now"))));
        wait_for(|| bench.server.requests().len() > seen + 2).await;
    }
    assert!(!bench.engine.index().synced());
    for (path, collection) in recording.collections {
        bench.server.replace(&path, collection);
    }
    bench.server.refuse(None);
    while !bench.engine.index().synced() {
        bench.event().await;
    }
    assert!(bench.round().contains("snackbar/order\n"));
}

#[tokio::test]
async fn a_server_that_does_not_know_the_field_selector_is_asked_without() {
    let mut bench = Bench::new(recording("01-scale", true).collections).await;
    let refusal =
        "\"spec.clusterIP\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"";
    bench.server.refuse(Some((400, status_body(400, "BadRequest", refusal))));
    let without = |request: &String| request.starts_with(SERVICES) && !request.contains("fieldSelector");
    wait_for(|| bench.server.requests().iter().any(without)).await;
    bench.server.refuse(None);
    assert!(bench.start().await.contains("snackbar/order\n"));
    assert!(
        bench
            .server
            .requests()
            .iter()
            .filter(|r| r.starts_with(SLICES))
            .all(|r| !r.contains("fieldSelector"))
    );
}

#[tokio::test]
async fn what_is_asked_for_is_selected_by_the_server() {
    let (bench, _) = running(false).await;
    let requests = bench.server.requests();
    let labels =
        "labelSelector=%21service.kubernetes.io%2Fservice-proxy-name%2C%21service.kubernetes.io%2Fheadless";
    for (path, selectors) in [
        (SERVICES, vec![labels, "fieldSelector=spec.clusterIP%21%3DNone"]),
        (SLICES, vec![labels]),
        (NODES, vec!["fieldSelector=metadata.name%3Dnode-1"]),
    ] {
        let mut requests = requests.iter().filter(|request| request.starts_with(path)).peekable();
        assert!(requests.peek().is_some());
        assert!(
            requests.all(|request| selectors.iter().all(|selector| request.contains(selector))),
            "{path}"
        );
    }
}

/// The Services of a recorded list in two pages, all of it with empty lists of the other kinds.
fn paged() -> (HashMap<String, Collection>, String, Bytes) {
    let first = recorded("15-page1.services.json");
    let value: Value = serde_json::from_slice(&first).unwrap();
    let token = value["metadata"]["continue"].as_str().unwrap().to_owned();
    let slices = Collection { list: recorded("13-dns.endpointslices.list.json"), ..Collection::default() };
    let services = Collection { list: first, ..Collection::default() };
    let collections =
        [(SERVICES, services), (SLICES, slices), (NODES, nodes(false))].map(|(path, c)| (path.to_owned(), c));
    (HashMap::from(collections), token, recorded("15-page2.services.json"))
}

#[tokio::test]
async fn a_list_in_pages_is_one_list() {
    let (mut collections, token, second) = paged();
    collections.get_mut(SERVICES).unwrap().pages.insert(token.clone(), second);
    let mut bench = Bench::new(collections).await;
    let plans = bench.start().await;
    for service in ["default/kubernetes\n", "snackbar/order\n", "snackbar/payment\n"] {
        assert!(plans.contains(service), "{service} is missing:\n{plans}");
    }
    assert!(bench.server.requests().iter().any(|r| r.starts_with(SERVICES) && r.contains(&token)));
}

#[tokio::test]
async fn a_list_that_expires_between_pages_begins_anew() {
    let (collections, _, _) = paged();
    let mut bench = Bench::new(collections).await;
    let continued = |request: &&String| request.starts_with(SERVICES) && request.contains("continue=");
    wait_for(|| bench.server.requests().iter().filter(continued).count() > 1).await;
    bench.server.replace(
        SERVICES,
        Collection { list: recorded("01-scale.services.list.json"), ..Collection::default() },
    );
    assert!(bench.start().await.contains("snackbar/order\n"));
}

#[tokio::test]
async fn a_streaming_list_that_never_ends_is_given_up() {
    let mut collections = recording("01-scale", true).collections;
    for collection in collections.values_mut() {
        // Servers of old ignore what they do not know, and go on as with any other watch.
        collection.initial.as_mut().unwrap().pop();
    }
    let mut bench = Bench::new(collections).await;
    assert!(bench.start().await.contains("snackbar/order\n"));
}

#[tokio::test]
async fn lines_that_are_no_events_are_passed_over() {
    let (mut bench, (path, line)) = running(true).await;
    for nonsense in [
        "{\"type\":\"ADDED\",\"object\":[]}\n",
        "no json at all\n",
        "{\"type\":\"WHATEVER\",\"object\":{}}\n",
        "\n",
        "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"x\",\"resourceVersion\":\"330\"},\"endpoints\":7}}\n",
    ] {
        bench.server.release(path, 330, Bytes::from(nonsense));
    }
    bench.server.release(path, line.version(), line.text.clone());
    bench.event().await;
    assert_eq!(bench.round(), ADDED);
}

#[tokio::test]
async fn data_set_back_to_an_earlier_time_is_listed_again() {
    let (mut bench, _) = running(true).await;
    let future = lines("16-future.services.watchlist.jsonl").remove(0);
    bench.server.replace(SERVICES, without_order(true));
    bench.server.release(SERVICES, 999, future.text);
    bench.event().await;
    assert!(bench.round().starts_with("snackbar/order gone\n"));
}

async fn wait_for(condition: impl Fn() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waited).await.expect("it happens within 20 s");
}
