//! Lists: selectors, pages, resource versions.

use std::sync::Arc;

use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::{registry::Registry, resources::ResourceType, selector::Selector, status::ApiError, store::Key};

/// What a list asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListQuery {
    pub(crate) namespace: Option<String>,
    pub(crate) selector: Selector,
    pub(crate) limit: usize,
    pub(crate) continue_token: Option<String>,
    pub(crate) resource_version: Option<u64>,
    pub(crate) exact: bool,
}

/// One page.
pub(crate) fn list(
    registry: &Registry,
    resource: &'static ResourceType,
    query: &ListQuery,
) -> Result<Value, ApiError> {
    let current = registry.store.version();
    if let Some(wanted) = query.resource_version
        && wanted > current
    {
        return Err(ApiError::too_large(wanted, current));
    }
    let token = query.continue_token.as_deref().map(decode).transpose()?;
    let namespace = query.namespace.as_deref();
    let (version, objects) = match &token {
        // A token of an expired list asks for the rest of the present one.
        Some((-1, _)) => (current, snapshot(registry, resource, namespace)),
        None if !query.exact => (current, snapshot(registry, resource, namespace)),
        Some((version, start)) => {
            let version = u64::try_from(*version).unwrap_or_default();
            let objects = registry.store.list_at(resource, namespace, version);
            let rest = || ApiError::continue_expired(encode(-1, start));
            (version, objects.map(|it| it.into_iter().collect()).ok_or_else(rest)?)
        }
        None => {
            let version = query.resource_version.unwrap_or(current);
            let objects = registry.store.list_at(resource, namespace, version);
            (version, objects.map(|it| it.into_iter().collect()).ok_or_else(ApiError::list_too_old)?)
        }
    };
    let start = token.map(|(_, start)| start).unwrap_or_default();
    let after = |key: &Key| position(key, namespace) >= start;
    let mut selected =
        objects.into_iter().filter(|(key, object)| after(key) && query.selector.matches(object)).peekable();
    let (mut items, mut last) = (Vec::new(), None);
    while query.limit == 0 || items.len() < query.limit {
        let Some((key, object)) = selected.next() else { break };
        let mut item = Value::clone(&object);
        for field in ["kind", "apiVersion"] {
            super::defaults::remove(&mut item, field);
        }
        items.push(item);
        last = Some(key);
    }
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let (Some(last), true) = (last, selected.peek().is_some()) {
        let start = format!("{}\0", position(&last, namespace));
        metadata["continue"] = encode(i64::try_from(version).unwrap_or(i64::MAX), &start).into();
        if query.selector == Selector::default() {
            metadata["remainingItemCount"] = selected.count().into();
        }
    }
    Ok(json!({
        "kind": format!("{}List", resource.kind),
        "apiVersion": resource.api_version(),
        "metadata": metadata,
        "items": items,
    }))
}

fn snapshot(
    registry: &Registry,
    resource: &'static ResourceType,
    namespace: Option<&str>,
) -> Vec<(Key, Arc<Value>)> {
    registry.store.list(resource, namespace).map(|(key, object)| (key.clone(), Arc::clone(object))).collect()
}

/// Where an object stands in its list, as the real server's tokens name it.
fn position(key: &Key, namespace: Option<&str>) -> String {
    match (namespace, key.1.is_empty()) {
        (Some(_), _) | (None, true) => key.2.clone(),
        (None, false) => format!("/{}/{}", key.1, key.2),
    }
}

fn encode(version: i64, start: &str) -> String {
    let token = json!({"v": "meta.k8s.io/v1", "rv": version, "start": start}).to_string();
    let encoded = base64(token.into_bytes());
    encoded.replace('+', "-").replace('/', "_").trim_end_matches('=').to_owned()
}

/// The version (-1: whatever is current) and where to start.
fn decode(token: &str) -> Result<(i64, String), ApiError> {
    let bad = || ApiError::bad_request(format!("continue key is not valid: {token}"));
    let mut text = token.replace('-', "+").replace('_', "/");
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    let bytes: ByteString = serde_json::from_value(Value::String(text)).map_err(|_| bad())?;
    let value: Value = serde_json::from_slice(&bytes.0).map_err(|_| bad())?;
    let version = value["rv"].as_i64().ok_or_else(bad)?;
    Ok((version, value["start"].as_str().ok_or_else(bad)?.to_owned()))
}

/// Standard base64.
pub(crate) fn base64(bytes: Vec<u8>) -> String {
    match serde_json::to_value(ByteString(bytes)) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    }
}
