//! The objects of a server that is reached over HTTP, as any client reaches it.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

use anyhow::Context;
use bytes::Bytes;
use futures::{StreamExt, pin_mut};
use http_body_util::BodyExt;
use hyper::{
    Method, Request,
    header::{CONTENT_TYPE, HeaderValue},
    http::response,
};
use kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use tokio::{
    runtime::Handle,
    sync::{mpsc as channel, oneshot, watch},
};

use super::{
    front::Pieces,
    handle::Changes,
    patch::PatchKind,
    registry::{DeleteOptions, Part},
    resources::ResourceType,
    status::ApiError,
    store::{Change, ChangeKind, Key, key_of, text},
};
use crate::netns::Namespace;

/// Who applies, in the server's records of managed fields.
const FIELD_MANAGER: &str = "lab";

/// A client; clones share its connections.
///
/// Its sockets belong to a thread that no caller is on, so that callers may wait for an answer wherever they are.
#[derive(Debug, Clone)]
pub(crate) struct Remote(Arc<Inner>);

struct Inner {
    client: Client,
    handle: Handle,
    /// The client's own thread, when no namespace lends it one.
    _own: Option<OwnThread>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Remote {
    /// A client with this kubeconfig, in a network namespace or where the process is.
    pub(crate) fn connect(at: Option<&Namespace>, kubeconfig: &str) -> anyhow::Result<Self> {
        let kubeconfig = Kubeconfig::from_yaml(kubeconfig).context("kubeconfig")?;
        let (handle, own) = match at {
            Some(namespace) => (namespace.handle().clone(), None),
            None => {
                let own = OwnThread::start()?;
                (own.handle.clone(), Some(own))
            }
        };
        let client = wait_for(&handle, async move {
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            // Tasks and sockets of the client belong to the thread that makes it.
            anyhow::Ok(Client::try_from(config)?)
        })
        .context("the client's thread has ended")??;
        Ok(Self(Arc::new(Inner { client, handle, _own: own })))
    }

    /// Whether the server says that it is ready.
    pub(crate) fn is_ready(&self) -> Result<(), ApiError> {
        let request = Request::builder().uri("/readyz").body(Vec::new());
        self.send(request.map_err(|error| transport(&error))?).map(drop)
    }

    pub(super) fn version(&self) -> u64 {
        let uri = format!("{}?limit=1", path(built_in("namespaces"), "", "", Part::Main));
        let list = self.ask(Method::GET, &uri, None, None);
        let list = list.unwrap_or_else(|error| panic!("asking for the resource version: {error}"));
        text(&list, "/metadata/resourceVersion").parse().unwrap_or_default()
    }

    pub(super) fn create(
        &self,
        resource: &'static ResourceType,
        object: Value,
    ) -> Result<Arc<Value>, ApiError> {
        let namespace = match text(&object, "/metadata/namespace") {
            "" => "default",
            namespace => namespace,
        };
        let uri = path(resource, namespace, "", Part::Main);
        self.ask(Method::POST, &uri, Some("application/json"), Some(&object)).map(Arc::new)
    }

    pub(super) fn bind(&self, namespace: &str, name: &str, binding: &Value) -> Result<(), ApiError> {
        let uri = path(built_in("pods"), namespace, name, Part::Binding);
        self.ask(Method::POST, &uri, Some("application/json"), Some(binding)).map(drop)
    }

    pub(super) fn update(
        &self,
        resource: &'static ResourceType,
        namespace: &str,
        name: &str,
        object: Value,
        part: Part,
    ) -> Result<Arc<Value>, ApiError> {
        let uri = path(resource, namespace, name, part);
        self.ask(Method::PUT, &uri, Some("application/json"), Some(&object)).map(Arc::new)
    }

    pub(super) fn patch(
        &self,
        resource: &'static ResourceType,
        namespace: &str,
        name: &str,
        patch: &Value,
        kind: PatchKind,
        part: Part,
    ) -> Result<Arc<Value>, ApiError> {
        let mut uri = path(resource, namespace, name, part);
        if kind == PatchKind::Apply {
            uri.push_str(&format!("?fieldManager={FIELD_MANAGER}&force=true"));
        }
        self.ask(Method::PATCH, &uri, Some(kind.content_type()), Some(patch)).map(Arc::new)
    }

    pub(super) fn delete(
        &self,
        resource: &'static ResourceType,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(), ApiError> {
        let DeleteOptions { grace_seconds, uid } = options;
        let mut body = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        if let Some(seconds) = grace_seconds {
            body["gracePeriodSeconds"] = (*seconds).into();
        }
        if let Some(uid) = uid {
            body["preconditions"] = json!({"uid": uid});
        }
        let uri = path(resource, namespace, name, Part::Main);
        self.ask(Method::DELETE, &uri, Some("application/json"), Some(&body)).map(drop)
    }

    pub(super) fn get(
        &self,
        resource: &'static ResourceType,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Value>, ApiError> {
        self.ask(Method::GET, &path(resource, namespace, name, Part::Main), None, None).map(Arc::new)
    }

    pub(super) fn list(
        &self,
        resource: &'static ResourceType,
        namespace: Option<&str>,
        labels: &str,
    ) -> Result<Vec<Arc<Value>>, ApiError> {
        let mut uri = path(resource, namespace.unwrap_or_default(), "", Part::Main);
        if !labels.is_empty() {
            uri.push_str(&format!("?labelSelector={}", escaped(labels)));
        }
        let mut list = self.ask(Method::GET, &uri, None, None)?;
        let items = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
        Ok(items.into_iter().map(|item| Arc::new(named(resource, item))).collect())
    }

    pub(super) fn follow(&self, resources: Vec<&'static ResourceType>) -> Changes {
        let (sender, receiver) = channel::unbounded_channel();
        for resource in resources.iter().copied() {
            let api = Api::<DynamicObject>::all_with(self.0.client.clone(), &api_resource(resource));
            self.0.handle.spawn(follow(api, resource, sender.clone()));
        }
        Changes::new(Vec::new(), receiver, resources)
    }

    /// Hands a request on and brings back the head of the answer and, as it comes, its body. That ends in the middle of a
    /// piece when `broken` changes.
    pub(super) async fn hand_on(
        &self,
        request: Request<Vec<u8>>,
        mut broken: watch::Receiver<u64>,
    ) -> Result<(response::Parts, Pieces), ApiError> {
        let client = self.0.client.clone();
        let (head, told) = oneshot::channel();
        let (sender, pieces) = channel::channel(16);
        self.0.handle.spawn(async move {
            let request = request.map(kube::client::Body::from);
            let (parts, mut body) = match client.send(request).await {
                Ok(answer) => answer.into_parts(),
                Err(error) => {
                    let _gone = head.send(Err(transport(&error)));
                    return;
                }
            };
            broken.mark_unchanged();
            // Whoever waits for neither any more has gone.
            let _gone = head.send(Ok(parts));
            loop {
                let frame = tokio::select! {
                    frame = body.frame() => frame,
                    () = sender.closed() => return,
                    _ = broken.changed() => {
                        let _gone = sender.send(Ok(Bytes::from_static(b"{\"type\":\"MODIF"))).await;
                        let _gone = sender.send(Err(io::Error::other("broken on demand"))).await;
                        return;
                    }
                };
                let piece = match frame {
                    None => return,
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => Ok(data),
                        Err(_trailers) => continue,
                    },
                    Some(Err(error)) => Err(io::Error::other(error.to_string())),
                };
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        });
        let gone = || ApiError::new(503, "ServiceUnavailable", "the client's thread has ended");
        Ok((told.await.map_err(|_| gone())??, pieces))
    }

    fn ask(
        &self,
        method: Method,
        uri: &str,
        content_type: Option<&'static str>,
        body: Option<&Value>,
    ) -> Result<Value, ApiError> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(content_type) = content_type {
            request = request.header(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        let answer = self.send(request.body(body.into_bytes()).map_err(|error| transport(&error))?)?;
        serde_json::from_str(&answer).map_err(|error| transport(&error))
    }

    fn send(&self, request: Request<Vec<u8>>) -> Result<String, ApiError> {
        let client = self.0.client.clone();
        match wait_for(&self.0.handle, async move { client.request_text(request).await }) {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(kube::Error::Api(status))) => {
                Err(ApiError::new(status.code, status.reason.clone(), status.message.clone()))
            }
            Some(Err(error)) => Err(transport(&error)),
            None => Err(ApiError::new(503, "ServiceUnavailable", "the client's thread has ended")),
        }
    }
}

fn built_in(plural: &str) -> &'static ResourceType {
    ResourceType::by_plural(plural).unwrap_or_else(|| unreachable!("{plural} are a built-in type"))
}

fn transport(error: &dyn std::error::Error) -> ApiError {
    ApiError::new(503, "ServiceUnavailable", format!("no answer from the API server: {error}"))
}

/// Waits for a future that another thread carries out; `None` when that thread is gone.
fn wait_for<T: Send + 'static>(handle: &Handle, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    handle.spawn(async move {
        // Nobody stops waiting.
        let _gone = sender.send(work.await);
    });
    receiver.recv().ok()
}

/// The path of an object (without a name: of all of them).
fn path(resource: &ResourceType, namespace: &str, name: &str, part: Part) -> String {
    let mut path =
        if resource.group.is_empty() { "/api/".to_owned() } else { format!("/apis/{}/", resource.group) };
    path.push_str(resource.version);
    if resource.namespaced && !namespace.is_empty() {
        path.push_str(&format!("/namespaces/{namespace}"));
    }
    path.push_str(&format!("/{}", resource.plural));
    if !name.is_empty() {
        path.push_str(&format!("/{name}"));
    }
    path.push_str(match part {
        Part::Main => "",
        Part::Status => "/status",
        Part::Scale => "/scale",
        Part::Binding => "/binding",
    });
    path
}

/// Text for a query: everything but letters, digits and a few signs in percent notation.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

fn api_resource(resource: &ResourceType) -> ApiResource {
    ApiResource {
        group: resource.group.to_owned(),
        version: resource.version.to_owned(),
        api_version: resource.api_version(),
        kind: resource.kind.to_owned(),
        plural: resource.plural.to_owned(),
    }
}

/// An item of a list with its type, which a list names only once.
fn named(resource: &ResourceType, mut object: Value) -> Value {
    object["apiVersion"] = resource.api_version().into();
    object["kind"] = resource.kind.into();
    object
}

/// Watches all objects of a type until nobody listens any more.
async fn follow(
    api: Api<DynamicObject>,
    resource: &'static ResourceType,
    sender: channel::UnboundedSender<Arc<Change>>,
) {
    let mut known: HashMap<Key, Arc<Value>> = HashMap::new();
    // What a new list has confirmed so far.
    let mut listed: HashMap<Key, Arc<Value>> = HashMap::new();
    let events = watcher(api, watcher::Config::default()).default_backoff();
    pin_mut!(events);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = sender.closed() => return,
        };
        let tell = |kind, object: &Arc<Value>, previous: Option<Arc<Value>>| {
            let version = text(object, "/metadata/resourceVersion").parse().unwrap_or_default();
            let change = Change { version, resource, kind, object: Arc::clone(object), previous };
            // Seen at the top of the loop.
            let _unheard = sender.send(Arc::new(change));
        };
        let is_initial = matches!(event, Some(Ok(watcher::Event::InitApply(_))));
        match event {
            None => return,
            Some(Err(error)) => tracing::debug!(%error, "watching {}", resource.plural),
            Some(Ok(watcher::Event::Init)) => listed.clear(),
            Some(Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object))) => {
                let Some((key, object)) = plain(resource, &object) else { continue };
                let previous = known.insert(key.clone(), Arc::clone(&object));
                if is_initial {
                    listed.insert(key, Arc::clone(&object));
                }
                match previous {
                    None => tell(ChangeKind::Added, &object, None),
                    Some(same) if same == object => {}
                    Some(previous) => tell(ChangeKind::Modified, &object, Some(previous)),
                }
            }
            Some(Ok(watcher::Event::InitDone)) => {
                // What went while nobody watched.
                let gone = known.extract_if(|key, _| !listed.contains_key(key));
                gone.for_each(|(_, object)| tell(ChangeKind::Deleted, &object, Some(Arc::clone(&object))));
                listed.clear();
            }
            Some(Ok(watcher::Event::Delete(object))) => {
                let Some((key, object)) = plain(resource, &object) else { continue };
                let previous = known.remove(&key);
                tell(ChangeKind::Deleted, &object, previous);
            }
        }
    }
}

fn plain(resource: &'static ResourceType, object: &DynamicObject) -> Option<(Key, Arc<Value>)> {
    let object = named(resource, serde_json::to_value(object).ok()?);
    Some((key_of(resource, &object), Arc::new(object)))
}

/// A thread with a runtime, for as long as this lives.
struct OwnThread {
    handle: Handle,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    thread: Option<JoinHandle<()>>,
}

impl OwnThread {
    fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name("API client".to_owned()).spawn(move || {
            // Told to stop, or nobody is left who could tell.
            let _told = runtime.block_on(stopped);
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, stop: Mutex::new(Some(stop)), thread: Some(thread) })
    }
}

impl Drop for OwnThread {
    fn drop(&mut self) {
        drop(self.stop.lock().unwrap_or_else(PoisonError::into_inner).take());
        // The last clone may go on this very thread, which cannot wait for itself.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
            && thread.join().is_err()
        {
            eprintln!("the API client's thread panicked");
        }
    }
}
