//! Watches: a stream of events, one JSON object a line.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::{
    control::Control,
    local::Local,
    resources::ResourceType,
    selector::Selector,
    status::ApiError,
    store::{Change, ChangeKind, text},
};

/// How long a request for a version of the future waits for it, as the real server does.
const FUTURE: Duration = Duration::from_secs(3);
/// How large a piece of the answer is at most (unless one event is larger).
const CHUNK: usize = 64 * 1024;

/// What a watch asks for.
#[derive(Debug, Clone)]
pub(crate) struct WatchQuery {
    pub(crate) namespace: Option<String>,
    pub(crate) selector: Selector,
    pub(crate) resource_version: Option<u64>,
    /// `sendInitialEvents`, when it is stated.
    pub(crate) initial_events: Option<bool>,
    pub(crate) bookmarks: bool,
    pub(crate) timeout: Duration,
    /// Whether only metadata is wanted.
    pub(crate) metadata_only: bool,
}

pub(crate) type Pieces = mpsc::Sender<Result<Frame<Bytes>, io::Error>>;

/// The far end of the watch is gone, or was cut.
struct Ended;

/// Waits until the store has reached a version.
pub(crate) async fn wait_for(api: &Local, version: u64) -> Result<(), ApiError> {
    let mut changes = {
        let mut registry = api.lock();
        if registry.store.version() >= version {
            return Ok(());
        }
        registry.store.follow()
    };
    let reached = async {
        while let Some(change) = changes.recv().await {
            if change.version >= version {
                break;
            }
        }
    };
    match timeout(FUTURE, reached).await {
        Ok(()) => Ok(()),
        Err(_) => Err(ApiError::too_large(version, api.version())),
    }
}

/// Runs a watch until it ends, by its timeout, an error, or the client.
pub(crate) async fn run(
    api: Local,
    resource: &'static ResourceType,
    query: WatchQuery,
    control: Arc<Control>,
    pieces: Pieces,
) {
    let mut watch = Watch { resource, query, pieces, buffer: Vec::new() };
    // Whoever ended it knows.
    let _ended = watch.run(&api, &control).await;
}

struct Watch {
    resource: &'static ResourceType,
    query: WatchQuery,
    pieces: Pieces,
    buffer: Vec<u8>,
}

impl Watch {
    async fn run(&mut self, api: &Local, control: &Control) -> Result<(), Ended> {
        let wants_initial = match self.query.initial_events {
            Some(wants) => wants,
            None => self.query.resource_version.unwrap_or_default() == 0,
        };
        if self.query.initial_events == Some(true)
            && let Some(version) = self.query.resource_version
            && let Err(error) = wait_for(api, version).await
        {
            return self.fail(&error).await;
        }
        let started = self.start(api, wants_initial);
        let (first, mut changes, mut seen) = match started {
            Ok(started) => started,
            Err(error) => return self.fail(&error).await,
        };
        for (kind, object) in first {
            self.push(kind, object).await?;
        }
        if self.query.initial_events == Some(true) && self.query.bookmarks {
            let mut bookmark = self.resource.bookmark(seen);
            bookmark["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
            self.push("BOOKMARK", bookmark).await?;
        }
        self.flush().await?;

        let end = Instant::now() + self.query.timeout;
        let before_end = end.checked_sub(Duration::from_secs(2)).unwrap_or(end);
        let mut last_bookmark_sent = false;
        let (mut broken, mut intervals) = (control.broken.subscribe(), control.bookmarks.subscribe());
        let mut next_bookmark = Instant::now() + *intervals.borrow_and_update();
        let pieces = self.pieces.clone();
        loop {
            let bookmark_at = if last_bookmark_sent { next_bookmark } else { next_bookmark.min(before_end) };
            tokio::select! {
                biased;
                _ = pieces.closed() => return Err(Ended),
                _ = broken.changed() => return self.break_off(seen).await,
                change = changes.recv() => {
                    let Some(change) = change else { return Ok(()) };
                    seen = change.version;
                    self.change(&change).await?;
                    while let Ok(change) = changes.try_recv() {
                        seen = change.version;
                        self.change(&change).await?;
                    }
                    self.flush().await?;
                }
                () = sleep_until(end) => return Ok(()),
                _ = intervals.changed() => next_bookmark = Instant::now() + *intervals.borrow_and_update(),
                () = sleep_until(bookmark_at), if self.query.bookmarks => {
                    last_bookmark_sent |= Instant::now() >= before_end;
                    next_bookmark = Instant::now() + *intervals.borrow();
                    // Everything up to `seen` was delivered, of every type.
                    self.push("BOOKMARK", self.resource.bookmark(seen)).await?;
                    self.flush().await?;
                }
            }
        }
    }

    /// What there is to send at first, what follows, and the version reached.
    #[expect(clippy::type_complexity, reason = "used in one place")]
    fn start(
        &self,
        api: &Local,
        wants_initial: bool,
    ) -> Result<(Vec<(&'static str, Value)>, mpsc::UnboundedReceiver<Arc<Change>>, u64), ApiError> {
        let mut registry = api.lock();
        let version = registry.store.version();
        let first = if wants_initial {
            let list = registry.store.list(self.resource, self.query.namespace.as_deref());
            list.filter(|(_, object)| self.query.selector.matches(object))
                .map(|(_, object)| ("ADDED", Value::clone(object)))
                .collect()
        } else if let Some(wanted) = self.query.resource_version.filter(|it| *it > 0) {
            let missed = registry.store.since(wanted)?;
            missed.iter().filter_map(|change| self.event(change)).collect()
        } else {
            Vec::new()
        };
        Ok((first, registry.store.follow(), version))
    }

    /// The event a change is to this watch: an object that moves into the selection is added, one that moves out is
    /// deleted.
    fn event(&self, change: &Change) -> Option<(&'static str, Value)> {
        if change.resource != self.resource
            || self
                .query
                .namespace
                .as_deref()
                .is_some_and(|it| it != text(&change.object, "/metadata/namespace"))
        {
            return None;
        }
        let now = change.kind != ChangeKind::Deleted && self.query.selector.matches(&change.object);
        let before = change.previous.as_ref().filter(|it| self.query.selector.matches(it));
        match (before, now) {
            (None, false) => None,
            (None, true) => Some(("ADDED", Value::clone(&change.object))),
            (Some(_), true) => Some(("MODIFIED", Value::clone(&change.object))),
            (Some(before), false) => {
                let mut last = Value::clone(before);
                last["metadata"]["resourceVersion"] = change.version.to_string().into();
                Some(("DELETED", last))
            }
        }
    }

    async fn change(&mut self, change: &Change) -> Result<(), Ended> {
        match self.event(change) {
            Some((kind, object)) => self.push(kind, object).await,
            None => Ok(()),
        }
    }

    async fn push(&mut self, kind: &str, object: Value) -> Result<(), Ended> {
        let object = if self.query.metadata_only && kind != "ERROR" { metadata(&object) } else { object };
        // The kind comes first, as the real server writes it.
        self.buffer.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").as_bytes());
        if self.buffer.len() >= CHUNK { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.buffer));
        self.pieces.send(Ok(Frame::data(piece))).await.map_err(|_| Ended)
    }

    async fn fail(&mut self, error: &ApiError) -> Result<(), Ended> {
        self.push("ERROR", error.status()).await?;
        self.flush().await
    }

    /// Sends half an event and closes the connection.
    async fn break_off(&mut self, seen: u64) -> Result<(), Ended> {
        self.push("MODIFIED", self.resource.bookmark(seen)).await?;
        let half = self.buffer.len() / 2;
        self.buffer.truncate(half);
        self.flush().await?;
        let broken = io::Error::new(io::ErrorKind::ConnectionReset, "broken on demand");
        self.pieces.send(Err(broken)).await.map_err(|_| Ended)
    }
}

/// The `PartialObjectMetadata` of an object.
pub(crate) fn metadata(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"],
    })
}
