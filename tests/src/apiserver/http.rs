//! Requests and answers: paths, parameters, bodies, authentication.

use std::{collections::HashMap, convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response,
    body::Incoming,
    header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    control::Control,
    discovery,
    list::{ListQuery, list},
    local::Local,
    patch::PatchKind,
    registry::{DeleteOptions, Part, scale},
    resources::ResourceType,
    selector::Selector,
    serve::Answers,
    status::ApiError,
    store::{key_of, text},
    watch::{self, WatchQuery},
};

pub(crate) type Body = BoxBody<Bytes, io::Error>;

/// What a path points at.
struct Target {
    resource: &'static ResourceType,
    namespace: Option<String>,
    name: Option<String>,
    part: Part,
}

/// Where a request gets what it needs.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) api: Local,
    pub(crate) control: Arc<Control>,
}

impl Answers for Service {
    fn control(&self) -> &Control {
        &self.control
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        self.control.log(format!("{} {}", request.method(), request.uri()));
        let delay = self.control.settings().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        Ok(match self.route(request).await {
            Ok(response) => response,
            Err(error) => refuse(&error),
        })
    }
}

impl Service {
    async fn route(&self, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
        if let Some(status) = self.control.take_failure() {
            return Err(ApiError::injected(status));
        }
        let path = request.uri().path().trim_matches('/').to_owned();
        let segments: Vec<&str> = path.split('/').collect();
        let user = self.user(&request)?;
        if let ["healthz" | "livez" | "readyz", ..] = segments.as_slice() {
            return Ok(plain(200, "ok"));
        }
        let found = target(&segments);
        if user == ANONYMOUS && segments != ["version"] {
            return Err(match found {
                Some(target) => self.forbidden(user, &request, &target),
                None => ApiError::new(
                    403,
                    "Forbidden",
                    format!("forbidden: User \"{user}\" cannot get path \"/{path}\""),
                ),
            });
        }
        if let Some(answer) = discovery::answer(&segments) {
            return Ok(object(200, &answer));
        }
        let Some(target) = found else { return Ok(plain(404, "404 page not found\n")) };
        if self.control.settings().forbidden.contains(target.resource.plural) {
            return Err(self.forbidden(user, &request, &target));
        }
        self.resource(request, target).await
    }

    fn user(&self, request: &Request<Incoming>) -> Result<&'static str, ApiError> {
        let Some(header) = request.headers().get(AUTHORIZATION) else { return Ok(ANONYMOUS) };
        let given = header.to_str().ok().and_then(|it| it.strip_prefix("Bearer "));
        let settings = self.control.settings();
        match (&settings.token, given) {
            (Some(token), Some(given)) if token == given.trim() => Ok("admin"),
            _ => Err(ApiError::unauthorized()),
        }
    }

    fn forbidden(&self, user: &str, request: &Request<Incoming>, target: &Target) -> ApiError {
        let watching = parameters(request).get("watch").is_some_and(|it| is_true(it));
        let verb = match (request.method(), target.name.is_some()) {
            (&Method::GET, true) => "get",
            (&Method::GET, false) if watching => "watch",
            (&Method::GET, false) => "list",
            (&Method::POST, _) => "create",
            (&Method::PUT, _) => "update",
            (&Method::PATCH, _) => "patch",
            (_, true) => "delete",
            (_, false) => "deletecollection",
        };
        ApiError::forbidden(user, verb, target.resource, target.namespace.as_deref(), target.name.as_deref())
    }

    async fn resource(&self, request: Request<Incoming>, target: Target) -> Result<Response<Body>, ApiError> {
        let parameters = parameters(&request);
        let accept =
            request.headers().get(ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned();
        let metadata_only = accept.contains("as=PartialObjectMetadata");
        let method = request.method().clone();
        let namespace = target.namespace.clone().unwrap_or_default();
        let (resource, part) = (target.resource, target.part);
        let Some(name) = target.name.clone() else {
            return match method {
                Method::GET if parameters.get("watch").is_some_and(|it| is_true(it)) => {
                    self.watch(&target, &parameters, metadata_only).await
                }
                Method::GET => self.list(&target, &parameters, metadata_only).await,
                Method::POST => {
                    let body = read_body(request).await?;
                    let created = self.api.lock().create(resource, &namespace, body)?;
                    Ok(object(201, &created))
                }
                Method::DELETE => self.delete_collection(&target, &parameters).await,
                _ => Err(ApiError::method_not_allowed()),
            };
        };
        if part == Part::Binding {
            if method != Method::POST {
                return Err(ApiError::method_not_allowed());
            }
            let body = read_body(request).await?;
            self.api.lock().bind(&namespace, &name, &body)?;
            return Ok(object(
                201,
                &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
            ));
        }
        match method {
            Method::GET => {
                // A watch of one object by its path is one with a field selector.
                if parameters.get("watch").is_some_and(|it| is_true(it)) {
                    let mut parameters = parameters;
                    parameters.insert("fieldSelector".to_owned(), format!("metadata.name={name}"));
                    return self.watch(&target, &parameters, metadata_only).await;
                }
                let found = self.api.lock().get(resource, &namespace, &name)?;
                Ok(match part {
                    Part::Scale => object(200, &scale(&found)),
                    _ if metadata_only => object(200, &watch::metadata(&found)),
                    _ => object(200, &found),
                })
            }
            Method::PUT => {
                let body = read_body(request).await?;
                let updated = self.api.lock().update(resource, &namespace, &name, body, part)?;
                Ok(object(200, &if part == Part::Scale { scale(&updated) } else { Value::clone(&updated) }))
            }
            Method::PATCH => {
                let content_type = request.headers().get(CONTENT_TYPE).and_then(|it| it.to_str().ok());
                let kind = content_type.and_then(PatchKind::from_content_type).ok_or_else(|| {
                    ApiError::new(
                        415,
                        "UnsupportedMediaType",
                        "the body of the request was in an unknown format",
                    )
                })?;
                let body = read_body(request).await?;
                let mut registry = self.api.lock();
                let existed = registry.store.get(resource, &namespace, &name).is_some();
                let patched = registry.patch(resource, &namespace, &name, &body, kind, part)?;
                let answer = if part == Part::Scale { scale(&patched) } else { Value::clone(&patched) };
                Ok(object(if existed { 200 } else { 201 }, &answer))
            }
            Method::DELETE => {
                let options = delete_options(&parameters, read_body(request).await?);
                let (last, gone) = self.api.lock().delete(resource, &namespace, &name, &options)?;
                // For these two the server answers with what they were, also when they are gone.
                if !gone || ["Pod", "Service"].contains(&resource.kind) {
                    return Ok(object(200, &last));
                }
                let mut details =
                    json!({"name": name, "kind": resource.plural, "uid": last["metadata"]["uid"]});
                if !resource.group.is_empty() {
                    details["group"] = resource.group.into();
                }
                Ok(object(
                    200,
                    &json!({
                        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
                    }),
                ))
            }
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    async fn list(
        &self,
        target: &Target,
        parameters: &HashMap<String, String>,
        metadata_only: bool,
    ) -> Result<Response<Body>, ApiError> {
        let version = version(parameters)?;
        let matching = parameters.get("resourceVersionMatch").map_or("", String::as_str);
        if !matching.is_empty() && version.is_none() {
            return Err(ApiError::invalid_list_options(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if let Some(version) = version {
            watch::wait_for(&self.api, version).await?;
        }
        let limit = parameters.get("limit").and_then(|it| it.parse().ok()).unwrap_or_default();
        let query = ListQuery {
            namespace: target.namespace.clone(),
            selector: selector(target.resource, parameters)?,
            limit,
            continue_token: parameters.get("continue").filter(|it| !it.is_empty()).cloned(),
            resource_version: version,
            exact: matching == "Exact",
        };
        let mut answer = list(&self.api.lock(), target.resource, &query)?;
        if metadata_only {
            answer["kind"] = "PartialObjectMetadataList".into();
            answer["apiVersion"] = "meta.k8s.io/v1".into();
            if let Some(items) = answer["items"].as_array_mut() {
                items.iter_mut().for_each(|item| *item = watch::metadata(item));
            }
        }
        Ok(object(200, &answer))
    }

    async fn watch(
        &self,
        target: &Target,
        parameters: &HashMap<String, String>,
        metadata_only: bool,
    ) -> Result<Response<Body>, ApiError> {
        let initial_events = parameters.get("sendInitialEvents").map(|it| is_true(it));
        let matching = parameters.get("resourceVersionMatch").map_or("", String::as_str);
        match initial_events {
            Some(_) if !self.control.streaming_lists() => {
                return Err(ApiError::invalid_list_options(
                    "sendInitialEvents",
                    "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
                ));
            }
            Some(_) if matching != "NotOlderThan" => {
                return Err(ApiError::invalid_list_options(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            None if !matching.is_empty() => {
                return Err(ApiError::invalid_list_options(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
            _ => {}
        }
        let seconds = parameters.get("timeoutSeconds").and_then(|it| it.parse().ok()).filter(|it| *it > 0);
        let query = WatchQuery {
            namespace: target.namespace.clone(),
            selector: selector(target.resource, parameters)?,
            resource_version: version(parameters)?,
            initial_events,
            bookmarks: parameters.get("allowWatchBookmarks").is_some_and(|it| is_true(it)),
            timeout: Duration::from_secs(seconds.unwrap_or(1800)),
            metadata_only,
        };
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(watch::run(self.api.clone(), target.resource, query, Arc::clone(&self.control), sender));
        let pieces = stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
        Ok(headers(200, "application/json").body(StreamBody::new(pieces).boxed()).unwrap_or_default())
    }

    async fn delete_collection(
        &self,
        target: &Target,
        parameters: &HashMap<String, String>,
    ) -> Result<Response<Body>, ApiError> {
        let query = ListQuery {
            namespace: target.namespace.clone(),
            selector: selector(target.resource, parameters)?,
            ..ListQuery::default()
        };
        let options = delete_options(parameters, Value::Null);
        let mut registry = self.api.lock();
        let answer = list(&registry, target.resource, &query)?;
        for item in answer["items"].as_array().into_iter().flatten() {
            let (_, namespace, name) = key_of(target.resource, item);
            registry.delete(target.resource, &namespace, &name, &options)?;
        }
        Ok(object(200, &answer))
    }
}

const ANONYMOUS: &str = "system:anonymous";

fn target(segments: &[&str]) -> Option<Target> {
    let (group, version, rest) = match segments {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        // Below a namespace, except for the subresources of the namespace itself.
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() && rest != ["status"] => {
            (Some((*namespace).to_owned()), rest)
        }
        rest => (None, rest),
    };
    let (plural, name, part) = match rest {
        [plural] => (plural, None, Part::Main),
        [plural, name] => (plural, Some(*name), Part::Main),
        [plural, name, "status"] => (plural, Some(*name), Part::Status),
        [plural, name, "scale"] => (plural, Some(*name), Part::Scale),
        [plural, name, "binding"] => (plural, Some(*name), Part::Binding),
        _ => return None,
    };
    let resource = ResourceType::by_path(group, version, plural)?;
    let served = match part {
        Part::Main => true,
        Part::Status => resource.subresources.contains(&"status"),
        Part::Scale => resource.subresources.contains(&"scale"),
        Part::Binding => resource.kind == "Pod",
    };
    let placed =
        if resource.namespaced { name.is_none() || namespace.is_some() } else { namespace.is_none() };
    let name = name.map(str::to_owned);
    (served && placed).then_some(Target { resource, namespace, name, part })
}

/// The parameters of a request, percent-decoded.
fn parameters(request: &Request<Incoming>) -> HashMap<String, String> {
    let query = request.uri().query().unwrap_or_default();
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (percent_decode(key), percent_decode(value)))
        .collect()
}

fn percent_decode(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, tail @ ..] = rest {
        rest = tail;
        let hex = |byte: u8| char::from(byte).to_digit(16);
        match (first, tail) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, after @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                let value = hex(*high).unwrap_or_default() * 16 + hex(*low).unwrap_or_default();
                bytes.push(u8::try_from(value).unwrap_or_default());
                rest = after;
            }
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn is_true(text: &str) -> bool {
    matches!(text, "1" | "true" | "")
}

fn version(parameters: &HashMap<String, String>) -> Result<Option<u64>, ApiError> {
    match parameters.get("resourceVersion").map_or("", String::as_str) {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| ApiError::bad_resource_version(text)),
    }
}

fn selector(resource: &ResourceType, parameters: &HashMap<String, String>) -> Result<Selector, ApiError> {
    let get = |key: &str| parameters.get(key).map_or("", String::as_str);
    Selector::labels(get("labelSelector"))?.with_fields(get("fieldSelector"), resource)
}

fn delete_options(parameters: &HashMap<String, String>, body: Value) -> DeleteOptions {
    let parameter = parameters.get("gracePeriodSeconds").and_then(|it| it.parse().ok());
    let uid = text(&body, "/preconditions/uid");
    DeleteOptions {
        grace_seconds: body.get("gracePeriodSeconds").and_then(Value::as_i64).or(parameter),
        uid: (!uid.is_empty()).then(|| uid.to_owned()),
    }
}

async fn read_body(request: Request<Incoming>) -> Result<Value, ApiError> {
    let body = request.into_body().collect().await;
    let bytes =
        body.map_err(|error| ApiError::bad_request(format!("cannot read the body: {error}")))?.to_bytes();
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let bad = |error: &dyn std::fmt::Display| {
        ApiError::bad_request(format!("the object provided is unrecognized (must be of type): {error}"))
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(value),
        // Server-side apply sends YAML.
        Err(error) if bytes.first() == Some(&b'{') => Err(bad(&error)),
        Err(_) => {
            let text = std::str::from_utf8(&bytes).map_err(|error| bad(&error))?;
            serde_saphyr::from_str(text).map_err(|error| bad(&error))
        }
    }
}

fn headers(status: u16, content_type: &str) -> hyper::http::response::Builder {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type)
        .header(CACHE_CONTROL, "no-cache, private")
        .header("Audit-Id", super::random::Random::new().uid())
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

fn object(status: u16, value: &Value) -> Response<Body> {
    headers(status, "application/json").body(full(format!("{value}\n"))).unwrap_or_default()
}

pub(crate) fn refuse(error: &ApiError) -> Response<Body> {
    let mut builder = headers(error.code, "application/json");
    if let Some(seconds) = error.retry_after() {
        builder = builder.header(RETRY_AFTER, seconds);
    }
    builder.body(full(format!("{}\n", error.status()))).unwrap_or_default()
}

fn plain(status: u16, text: &'static str) -> Response<Body> {
    headers(status, "text/plain; charset=utf-8").body(full(text)).unwrap_or_default()
}
