//! List and watch of one kind, for ever: streaming list where the server has it, a paged list where not.
//!
//! Written on the client's requests rather than on its ready-made watcher, because of what the agent promises about
//! broken servers: it has to know when a watch stands again (to say so), treats a 410 alike whether it comes as
//! response status or as watch event, paces itself against a server that closes every watch at once, and falls back
//! from streaming lists when the server ignores, refuses or never finishes them.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use kube::Client;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::{ObjectList, Request};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::DefaultBackoff;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::guarded::Guarded;
use super::kinds::Kind;
use super::problems::SourceStats;
use super::trouble::{Trouble, chain};

/// How long the server is asked to keep a watch open. A connection that died unnoticed is found this late at most.
const WATCH_TIMEOUT: Duration = Duration::from_secs(120);
/// What the server gets on top of it before the connection counts as dead.
const WATCH_GRACE: Duration = Duration::from_secs(5);
/// How long a streaming list may say nothing before its end. Servers before 1.27 never say that it is complete.
const LIST_SILENCE: Duration = Duration::from_secs(10);
/// How long one request may take to be answered.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Objects in one page of a list.
const PAGE: u32 = 500;
/// The longest pause between attempts.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// How long a server is left alone that has no such objects, or does not show them.
const WITHHELD: Duration = Duration::from_secs(300);
/// A watch that ends sooner than this without a single event counts as failed.
const SHORT_WATCH: Duration = Duration::from_secs(1);

/// Follows one kind until nobody listens any more.
pub(super) async fn follow<K: Kind>(
    client: Client,
    kind: K,
    events: mpsc::Sender<K::Event>,
    stats: Arc<SourceStats>,
) {
    let follower = Follower {
        client,
        fields: kind.field_selector(),
        kind,
        events,
        stats,
        streaming: true,
        trouble: Trouble::new(K::NAME),
        backoff: DefaultBackoff::default(),
    };
    follower.run().await;
}

struct Follower<K: Kind> {
    client: Client,
    kind: K,
    events: mpsc::Sender<K::Event>,
    stats: Arc<SourceStats>,
    /// False once the server turned out not to have streaming lists.
    streaming: bool,
    /// The field selector, until the server turns out not to know it.
    fields: Option<String>,
    trouble: Trouble,
    backoff: DefaultBackoff,
}

/// How an attempt ended.
enum End {
    /// The receiver is gone.
    HungUp,
    /// Normally; the watch goes on from this version.
    Resume(String),
    /// The version is too old: everything has to be listed again.
    Gone,
    /// Badly; the watch goes on from this version, or from a new list.
    Failed(Option<String>, kube::Error),
    /// Badly, without an error of the client.
    Broken(Option<String>, &'static str),
}

/// What follows from an error of the server.
enum Adapted {
    /// The next request avoids it.
    Learned,
    /// The version is of no use any more.
    Relist,
    /// Nothing: the same again, later.
    Nothing,
}

type Objects<K> = ObjectList<Guarded<<K as Kind>::Object>>;

impl<K: Kind> Follower<K> {
    async fn run(mut self) {
        let mut version: Option<String> = None;
        loop {
            let started = Instant::now();
            let end = match version.take() {
                Some(version) => self.watch(version).await,
                None if self.streaming => self.streaming_list().await,
                None => self.list().await,
            };
            let pause = match end {
                End::HungUp => return,
                End::Resume(resume) => {
                    version = Some(resume);
                    false
                }
                End::Gone => {
                    info!(what = K::NAME, "watch is too old for the server, listing again");
                    started.elapsed() < SHORT_WATCH
                }
                End::Failed(resume, error) => match self.adapt(&error) {
                    Adapted::Learned => false,
                    Adapted::Relist => {
                        self.failed(&explain(&error));
                        true
                    }
                    Adapted::Nothing if K::OPTIONAL && is_withheld(&error) => {
                        debug!(what = K::NAME, reason = explain(&error), "going on without");
                        if self.go_on_without().await.is_err() || self.rest(WITHHELD).await.is_err() {
                            return;
                        }
                        false
                    }
                    Adapted::Nothing => {
                        self.failed(&explain(&error));
                        if is_forbidden(&error) && self.go_on_without().await.is_err() {
                            return;
                        }
                        version = resume;
                        true
                    }
                },
                End::Broken(resume, reason) => {
                    version = resume;
                    self.failed(reason);
                    true
                }
            };
            if pause && self.pause().await.is_err() {
                return;
            }
        }
    }

    fn failed(&mut self, reason: &str) {
        SourceStats::add(&self.stats.failures, 1);
        self.trouble.failed(Instant::now(), reason);
    }

    fn works(&mut self) {
        self.trouble.recovered(Instant::now());
        self.backoff.reset();
    }

    async fn pause(&mut self) -> Result<(), HungUp> {
        let delay = self.backoff.next().unwrap_or(MAX_PAUSE).min(MAX_PAUSE);
        self.rest(delay).await
    }

    async fn rest(&self, delay: Duration) -> Result<(), HungUp> {
        tokio::select! {
            () = tokio::time::sleep(delay) => Ok(()),
            () = self.events.closed() => Err(HungUp),
        }
    }

    async fn send(&self, event: K::Event) -> Result<(), HungUp> {
        self.events.send(event).await.map_err(|_| HungUp)
    }

    /// Learns from what the server refuses.
    fn adapt(&mut self, error: &kube::Error) -> Adapted {
        let kube::Error::Api(status) = error else { return Adapted::Nothing };
        let message = &status.message;
        if matches!(status.code, 400 | 405 | 422) {
            let unknown_field = ["field label not supported", "not a known field selector"];
            if self.fields.is_some() && unknown_field.iter().any(|text| message.contains(text)) {
                info!(what = K::NAME, "the server does not know our field selector, selecting here");
                self.fields = None;
                return Adapted::Learned;
            }
            if self.streaming && (message.contains("sendInitialEvents") || status.code == 405) {
                info!(what = K::NAME, reason = message, "no streaming lists, listing in pages");
                self.streaming = false;
                return Adapted::Learned;
            }
            return Adapted::Relist;
        }
        // The server's data was set back to a time before our version; it would let us wait for ever.
        if message.contains("Too large resource version") { Adapted::Relist } else { Adapted::Nothing }
    }

    /// Says what there is to say when the kind may not be read at all.
    async fn go_on_without(&mut self) -> Result<(), HungUp> {
        match self.kind.forbidden() {
            Some(event) => self.send(event).await,
            None => Ok(()),
        }
    }

    /// A complete list in pages; the watch goes on from its version.
    async fn list(&mut self) -> End {
        self.kind.begin();
        let mut params = ListParams {
            label_selector: self.kind.label_selector(),
            field_selector: self.fields.clone(),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        loop {
            let request = match Request::new(K::PATH).list(&params) {
                Ok(request) => request,
                Err(error) => return End::Failed(None, kube::Error::BuildRequest(error)),
            };
            let answer = timeout(REQUEST_TIMEOUT, self.client.request::<Objects<K>>(request));
            let list = tokio::select! {
                answer = answer => match answer {
                    Ok(Ok(list)) => list,
                    Ok(Err(kube::Error::Api(status))) if status.code == 410 => return End::Gone,
                    Ok(Err(error)) => return End::Failed(None, error),
                    Err(_) => return End::Broken(None, "no answer to a list request"),
                },
                () = self.events.closed() => return End::HungUp,
            };
            for object in list.items {
                self.kind.listed(object, &self.stats);
            }
            let token = list.metadata.continue_.filter(|token| !token.is_empty());
            if token.is_some() {
                params.continue_token = token;
                continue;
            }
            let Some(version) = list.metadata.resource_version.filter(|version| !version.is_empty()) else {
                return End::Broken(None, "the list has no resourceVersion");
            };
            return match self.listed().await {
                Ok(()) => End::Resume(version),
                Err(HungUp) => End::HungUp,
            };
        }
    }

    async fn listed(&mut self) -> Result<(), HungUp> {
        SourceStats::add(&self.stats.lists, 1);
        self.works();
        let event = self.kind.end();
        self.send(event).await
    }

    async fn streaming_list(&mut self) -> End {
        self.kind.begin();
        self.receive(None).await
    }

    async fn watch(&mut self, version: String) -> End {
        self.receive(Some(version)).await
    }

    /// Opens a watch, which begins with a list when there is no version to go on from.
    async fn receive(&mut self, version: Option<String>) -> End {
        let params = WatchParams {
            label_selector: self.kind.label_selector(),
            field_selector: self.fields.clone(),
            timeout: Some(WATCH_TIMEOUT.as_secs() as u32),
            bookmarks: true,
            send_initial_events: version.is_none(),
        };
        // No version asks for the most recent state, and not for whatever the server has in its cache.
        let from = version.as_deref().unwrap_or_default();
        let request = match Request::new(K::PATH).watch(&params, from) {
            Ok(request) => request,
            Err(error) => return End::Failed(None, kube::Error::BuildRequest(error)),
        };
        let client = self.client.clone();
        let answer = timeout(REQUEST_TIMEOUT, client.request_events::<Guarded<K::Object>>(request));
        let stream = tokio::select! {
            answer = answer => match answer {
                Ok(Ok(stream)) => stream,
                Ok(Err(kube::Error::Api(status))) if status.code == 410 => return End::Gone,
                Ok(Err(error)) => return End::Failed(version, error),
                Err(_) => return End::Broken(version, "no answer to a watch request"),
            },
            () = self.events.closed() => return End::HungUp,
        };
        self.consume(pin!(stream), version).await
    }

    async fn consume(
        &mut self,
        mut stream: std::pin::Pin<
            &mut impl Stream<Item = Result<WatchEvent<Guarded<K::Object>>, kube::Error>>,
        >,
        mut version: Option<String>,
    ) -> End {
        let started = Instant::now();
        let mut received = 0usize;
        if version.is_some() {
            self.trouble.recovered(started);
        }
        loop {
            let patience = if version.is_none() { LIST_SILENCE } else { WATCH_TIMEOUT + WATCH_GRACE };
            let next = tokio::select! {
                next = timeout(patience, stream.next()) => next.map(Option::transpose),
                () = self.events.closed() => return End::HungUp,
            };
            let event = match next {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => {
                    return match version {
                        None => End::Broken(None, "the streaming list ended before it was complete"),
                        Some(_) if received == 0 && started.elapsed() < SHORT_WATCH => {
                            End::Broken(version, "the watch was closed at once")
                        }
                        Some(version) => End::Resume(version),
                    };
                }
                // A line that is no event; the stream goes on after it.
                Ok(Err(error)) if is_nonsense(&error) => {
                    SourceStats::add(&self.stats.objects_skipped, 1);
                    warn!(what = K::NAME, error = chain(&error), "watch event skipped");
                    continue;
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 410 => return End::Gone,
                Ok(Err(error)) => return End::Failed(version, error),
                Err(_) if version.is_none() => {
                    info!(what = K::NAME, "the streaming list does not end, listing in pages");
                    self.streaming = false;
                    return End::Broken(None, "the streaming list did not end");
                }
                Err(_) => {
                    debug!(what = K::NAME, "silent watch, connecting again");
                    return version.map_or(End::Gone, End::Resume);
                }
            };
            received += 1;
            if received == 1 && version.is_some() {
                self.backoff.reset();
            }
            match self.take(event, &mut version).await {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(HungUp) => return End::HungUp,
            }
        }
    }

    /// Handles one event of a watch. `version` is none until the list at its beginning is complete.
    async fn take(
        &mut self,
        event: WatchEvent<Guarded<K::Object>>,
        version: &mut Option<String>,
    ) -> Result<Option<End>, HungUp> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => match version {
                None => self.kind.listed(object, &self.stats),
                Some(version) => {
                    advance(version, &object.version);
                    if let Some(event) = self.kind.applied(object, &self.stats) {
                        self.send(event).await?;
                    }
                }
            },
            WatchEvent::Deleted(object) => {
                // A streaming list knows no deletions; should one come, the next list sets it right.
                let Some(version) = version else { return Ok(Some(End::Gone)) };
                advance(version, &object.version);
                if let Some(event) = self.kind.deleted(object.name) {
                    self.send(event).await?;
                }
            }
            WatchEvent::Bookmark(bookmark) => {
                let listed = bookmark.metadata.annotations.contains_key("k8s.io/initial-events-end");
                match version {
                    None if listed => {
                        *version = Some(bookmark.metadata.resource_version);
                        self.listed().await?;
                    }
                    None => {}
                    Some(version) => advance(version, &bookmark.metadata.resource_version),
                }
            }
            WatchEvent::Error(status) if status.code == 410 => return Ok(Some(End::Gone)),
            WatchEvent::Error(status) => {
                return Ok(Some(End::Failed(version.take(), kube::Error::Api(status))));
            }
        }
        Ok(None)
    }
}

/// Nobody listens any more.
struct HungUp;

/// An object that does not say its version leaves it as it was: some events come twice then, which does no harm.
fn advance(version: &mut String, to: &str) {
    if !to.is_empty() {
        to.clone_into(version);
    }
}

/// True for a line of a watch that is no event. JSON that is anything else at all passes for an empty `Status`.
fn is_nonsense(error: &kube::Error) -> bool {
    match error {
        kube::Error::SerdeError(_) => true,
        kube::Error::Api(status) => status.code == 0 && status.message.is_empty(),
        _ => false,
    }
}

/// True when the server does not know the kind, or does not show it to us.
fn is_withheld(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 403 | 404))
}

fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

/// An error in words, with what to do about it where that is known.
fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 401 => {
            format!("the server does not accept our credentials: {}", status.message)
        }
        kube::Error::Api(status) if status.code == 403 => {
            format!("our account may not list and watch here (RBAC): {}", status.message)
        }
        kube::Error::Api(status) => format!("status {}: {}", status.code, status.message),
        other => chain(other),
    }
}
