//! A small HTTP server that plays recorded API server answers: lists, watches and streaming lists.
//!
//! It understands just enough of the protocol to let a test decide when which recorded line is sent, and to misbehave
//! on demand: cut connections, go away, answer with an error. It does not select, version or validate anything.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

type Body = BoxBody<Bytes, std::io::Error>;

/// What one collection (`/api/v1/services`, ...) answers.
#[derive(Clone, Debug, Default)]
pub struct Collection {
    /// The body of a list.
    pub list: Bytes,
    /// Further pages of the list, by the token that the page before them ends with.
    pub pages: HashMap<String, Bytes>,
    /// The lines of a streaming list up to its end; `None` refuses streaming lists as an older server does.
    pub initial: Option<Vec<Bytes>>,
}

/// The server. Dropping it closes everything.
pub struct ReplayServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accept: Option<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Rises with every change that a watch may have to look at.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    collections: HashMap<String, Played>,
    /// Watches of an earlier epoch have to end.
    epoch: u64,
    requests: Vec<String>,
    /// Answers every request with this instead.
    refusal: Option<(StatusCode, Bytes)>,
}

#[derive(Default)]
struct Played {
    collection: Collection,
    /// Released lines with their resource version.
    log: Vec<(u64, Bytes)>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        self.changed.send_modify(|version| *version += 1);
    }
}

impl ReplayServer {
    /// Serves these collections on a free port of the loopback interface.
    pub async fn start(collections: HashMap<String, Collection>) -> std::io::Result<Self> {
        let played = |collection| Played { collection, log: Vec::new() };
        let state = State {
            collections: collections.into_iter().map(|(path, c)| (path, played(c))).collect(),
            ..State::default()
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), ..Shared::default() });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let accept = Some(tokio::spawn(accept(listener, shared.clone())));
        Ok(Self { address, shared, accept })
    }

    /// The URL to reach it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sends a recorded line to every watch of a collection that has not seen its version yet.
    pub fn release(&self, path: &str, version: u64, line: Bytes) {
        if let Some(played) = self.shared.state().collections.get_mut(path) {
            played.log.push((version, line));
        }
        self.shared.touch();
    }

    /// Replaces what the collection lists from now on, and forgets the lines released so far.
    pub fn replace(&self, path: &str, collection: Collection) {
        self.shared.state().collections.insert(path.to_owned(), Played { collection, log: Vec::new() });
    }

    /// Ends all running watches, as a server does now and then.
    pub fn end_watches(&self) {
        self.shared.state().epoch += 1;
        self.shared.touch();
    }

    /// Answers every request with this status and body from now on; `None` answers as before.
    pub fn refuse(&self, refusal: Option<(u16, Bytes)>) {
        let refusal = refusal.and_then(|(code, body)| Some((StatusCode::from_u16(code).ok()?, body)));
        self.shared.state().refusal = refusal;
    }

    /// Goes away: no connection lives on, and new ones are refused.
    pub async fn stop(&mut self) {
        if let Some(accept) = self.accept.take() {
            accept.abort();
            // An aborted task says so, which is what is waited for.
            let _ = accept.await;
        }
    }

    /// Comes back on the same port.
    pub async fn restart(&mut self) -> std::io::Result<()> {
        self.stop().await;
        let listener = TcpListener::bind(self.address).await?;
        self.accept = Some(tokio::spawn(accept(listener, self.shared.clone())));
        Ok(())
    }

    /// The requests received so far, path and query.
    pub fn requests(&self) -> Vec<String> {
        self.shared.state().requests.clone()
    }
}

impl Drop for ReplayServer {
    fn drop(&mut self) {
        if let Some(accept) = self.accept.take() {
            accept.abort();
        }
    }
}

/// Accepts connections; when it is aborted, they all go with it.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let shared = shared.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(&request, &shared);
                async move { Ok::<_, Infallible>(answer) }
            });
            // A client that hangs up in the middle of a watch is the normal end of one.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

fn answer(request: &Request<Incoming>, shared: &Arc<Shared>) -> Response<Body> {
    let query = request.uri().query().unwrap_or_default();
    let parameter = |name: &str| {
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, v)| v)
    };
    let path = request.uri().path().to_owned();
    let mut state = shared.state();
    state.requests.push(request.uri().to_string());
    if let Some((status, body)) = &state.refusal {
        return respond(*status, body.clone());
    }
    let epoch = state.epoch;
    let Some(played) = state.collections.get(&path) else {
        return respond(StatusCode::NOT_FOUND, status_body(404, "NotFound", "the server could not find it"));
    };
    if parameter("watch") != Some("true") {
        let expired =
            || respond(StatusCode::GONE, status_body(410, "Expired", "the continue token is too old"));
        return match parameter("continue") {
            None => respond(StatusCode::OK, played.collection.list.clone()),
            Some(token) => played
                .collection
                .pages
                .get(token)
                .map_or_else(expired, |page| respond(StatusCode::OK, page.clone())),
        };
    }
    let (initial, after) = if parameter("sendInitialEvents") == Some("true") {
        let Some(initial) = &played.collection.initial else {
            let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the \
                           WatchList feature gate is enabled";
            return respond(StatusCode::UNPROCESSABLE_ENTITY, status_body(422, "Invalid", message));
        };
        (initial.clone(), 0)
    } else {
        (Vec::new(), parameter("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0))
    };
    drop(state);
    let lines =
        Lines { shared: shared.clone(), changed: shared.changed.subscribe(), path, after, sent: 0, epoch };
    let initial = stream::iter(initial.into_iter().map(|line| Ok(Frame::data(line))));
    let body = StreamBody::new(futures::StreamExt::chain(initial, stream::unfold(lines, Lines::next)));
    let mut response = Response::new(BodyExt::boxed(body));
    json(&mut response);
    response
}

/// The released lines of a collection, as one watch sees them.
struct Lines {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    path: String,
    /// Lines of this version and older ones are known to the client.
    after: u64,
    sent: usize,
    epoch: u64,
}

impl Lines {
    async fn next(mut self) -> Option<(std::io::Result<Frame<Bytes>>, Self)> {
        loop {
            self.changed.mark_unchanged();
            {
                let state = self.shared.state();
                if state.epoch != self.epoch {
                    return None;
                }
                let log =
                    state.collections.get(&self.path).map(|played| played.log.as_slice()).unwrap_or_default();
                let next =
                    log.iter().enumerate().skip(self.sent).find(|(_, (version, _))| *version > self.after);
                if let Some((index, (_, line))) = next {
                    let line = line.clone();
                    drop(state);
                    self.sent = index + 1;
                    return Some((Ok(Frame::data(line)), self));
                }
            }
            self.changed.changed().await.ok()?;
        }
    }
}

fn respond(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    json(&mut response);
    response
}

fn json(response: &mut Response<Body>) {
    let value = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, value);
}

/// A `Status` object, as errors are told.
pub fn status_body(code: u16, reason: &str, message: &str) -> Bytes {
    let status = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    Bytes::from(status.to_string())
}
