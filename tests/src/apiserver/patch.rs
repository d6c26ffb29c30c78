//! Patches: JSON merge, JSON patch, strategic merge, and what apply takes away again.

use serde_json::{Map, Value};

use super::status::ApiError;

/// How a patch body is to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatchKind {
    /// RFC 7386: objects are merged, `null` removes, arrays are replaced.
    Merge,
    /// As [`PatchKind::Merge`], but arrays of named things are merged by their names.
    Strategic,
    /// RFC 6902: a list of operations.
    Json,
    /// Server-side apply: the wanted state of the fields that are named.
    Apply,
}

impl PatchKind {
    /// From the `Content-Type` of a request.
    pub(crate) fn from_content_type(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            "application/json-patch+json" => Some(Self::Json),
            "application/apply-patch+yaml" | "application/apply-patch+json" => Some(Self::Apply),
            _ => None,
        }
    }

    /// The `Content-Type` of a request with such a patch, written as JSON.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Json => "application/json-patch+json",
            // JSON is YAML, and older servers know this one only.
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

/// Applies a patch to an object.
pub(crate) fn apply(target: &mut Value, patch: &Value, kind: PatchKind) -> Result<(), ApiError> {
    match kind {
        PatchKind::Merge => merge(target, patch),
        PatchKind::Strategic | PatchKind::Apply => strategic(target, patch),
        PatchKind::Json => return operations(target, patch),
    }
    Ok(())
}

fn as_map(target: &mut Value) -> &mut Map<String, Value> {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    match target {
        Value::Object(map) => map,
        _ => unreachable!("made an object just above"),
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let map = as_map(target);
    for (key, value) in patch {
        if value.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// The field that names the items of a list, when the list is merged item by item.
fn merge_key(list: &str, items: &[Value]) -> Option<&'static str> {
    let key = match list {
        "containers" | "initContainers" | "env" | "volumes" => "name",
        "conditions" | "addresses" => "type",
        "podIPs" | "hostIPs" => "ip",
        "ownerReferences" => "uid",
        "ports" if items.iter().any(|item| item.get("containerPort").is_some()) => "containerPort",
        "ports" => "port",
        _ => return None,
    };
    items.iter().all(|item| item.get(key).is_some()).then_some(key)
}

fn strategic(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let map = as_map(target);
    if patch.get("$patch").and_then(Value::as_str) == Some("replace") {
        map.clear();
    }
    for (key, value) in patch {
        if key.starts_with('$') {
            continue;
        }
        match value {
            Value::Null => drop(map.remove(key)),
            Value::Array(items) => {
                let present = map.entry(key.clone()).or_insert(Value::Array(Vec::new()));
                match (merge_key(key, items), present.as_array_mut()) {
                    (Some(name), Some(list)) => merge_items(list, items, name),
                    _ => *present = value.clone(),
                }
            }
            _ => strategic(map.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

fn merge_items(list: &mut Vec<Value>, items: &[Value], name: &str) {
    for item in items {
        let same = |it: &Value| it.get(name) == item.get(name) && protocol(it) == protocol(item);
        if item.get("$patch").and_then(Value::as_str) == Some("delete") {
            list.retain(|it| !same(it));
        } else if let Some(present) = list.iter_mut().find(|it| same(it)) {
            strategic(present, item);
        } else {
            list.push(item.clone());
        }
    }
}

/// Ports of different protocols are different ports.
fn protocol(item: &Value) -> &str {
    item.get("protocol").and_then(Value::as_str).unwrap_or("TCP")
}

/// Removes from `live` what was applied before and is no longer wanted.
pub(crate) fn prune(live: &mut Value, before: &Value, wanted: &Value) {
    let (Some(live), Some(before)) = (live.as_object_mut(), before.as_object()) else { return };
    for (key, old) in before {
        let Some(new) = wanted.get(key) else {
            live.remove(key);
            continue;
        };
        match (old, new, live.get_mut(key)) {
            (Value::Array(old), Value::Array(new), Some(Value::Array(list))) => {
                if let Some(name) = merge_key(key, old) {
                    let has = |items: &[Value], it: &Value| {
                        items
                            .iter()
                            .any(|other| other.get(name) == it.get(name) && protocol(other) == protocol(it))
                    };
                    list.retain(|it| !has(old, it) || has(new, it));
                }
            }
            (_, _, Some(present)) => prune(present, old, new),
            _ => {}
        }
    }
}

fn operations(target: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let list =
        patch.as_array().ok_or_else(|| ApiError::bad_request("a JSON patch is a list of operations"))?;
    for operation in list {
        operate(target, operation).ok_or_else(|| {
            ApiError::new(
                422,
                "Invalid",
                format!("the server rejected our request due to an error in {operation}"),
            )
        })?;
    }
    Ok(())
}

fn operate(target: &mut Value, operation: &Value) -> Option<()> {
    let path = operation.get("path")?.as_str()?;
    let value = operation.get("value").cloned();
    match operation.get("op")?.as_str()? {
        "add" => insert(target, path, value?, false),
        "replace" => insert(target, path, value?, true),
        "remove" => take(target, path).map(drop),
        "test" => (target.pointer(path) == value.as_ref()).then_some(()),
        "copy" => {
            let from = target.pointer(operation.get("from")?.as_str()?)?.clone();
            insert(target, path, from, false)
        }
        "move" => {
            let from = take(target, operation.get("from")?.as_str()?)?;
            insert(target, path, from, false)
        }
        _ => None,
    }
}

fn split(path: &str) -> Option<(&str, String)> {
    let (parent, last) = path.rsplit_once('/')?;
    Some((parent, last.replace("~1", "/").replace("~0", "~")))
}

fn insert(target: &mut Value, path: &str, value: Value, replace: bool) -> Option<()> {
    if path.is_empty() {
        *target = value;
        return Some(());
    }
    let (parent, last) = split(path)?;
    match target.pointer_mut(parent)? {
        Value::Object(map) => {
            if replace && !map.contains_key(&last) {
                return None;
            }
            map.insert(last, value);
        }
        Value::Array(list) => {
            let position = if last == "-" { list.len() } else { last.parse().ok()? };
            if replace {
                *list.get_mut(position)? = value;
            } else if position <= list.len() {
                list.insert(position, value);
            } else {
                return None;
            }
        }
        _ => return None,
    }
    Some(())
}

fn take(target: &mut Value, path: &str) -> Option<Value> {
    let (parent, last) = split(path)?;
    match target.pointer_mut(parent)? {
        Value::Object(map) => map.remove(&last),
        Value::Array(list) => {
            let position: usize = last.parse().ok()?;
            (position < list.len()).then(|| list.remove(position))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{PatchKind, apply, prune};

    #[test]
    fn merge_replaces_lists_and_removes_nulls() {
        let mut object = json!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
        apply(&mut object, &json!({"a": {"b": null, "d": 3}, "l": [3]}), PatchKind::Merge).unwrap();
        assert_eq!(object, json!({"a": {"c": 2, "d": 3}, "l": [3]}));
    }

    #[test]
    fn strategic_merges_lists_by_name() {
        let mut object = json!({"ports": [{"port": 80, "name": "http"}, {"port": 81}]});
        let patch =
            json!({"ports": [{"port": 80, "targetPort": 1}, {"port": 81, "$patch": "delete"}, {"port": 82}]});
        apply(&mut object, &patch, PatchKind::Strategic).unwrap();
        assert_eq!(object, json!({"ports": [{"port": 80, "name": "http", "targetPort": 1}, {"port": 82}]}));
    }

    #[test]
    fn json_patch_operations() {
        let mut object = json!({"a": [1, 2], "b": {"x/y": 1}});
        let patch = json!([
            {"op": "test", "path": "/a/0", "value": 1},
            {"op": "add", "path": "/a/-", "value": 3},
            {"op": "remove", "path": "/b/x~1y"},
            {"op": "replace", "path": "/a/0", "value": 9},
            {"op": "move", "from": "/a/1", "path": "/c"},
        ]);
        apply(&mut object, &patch, PatchKind::Json).unwrap();
        assert_eq!(object, json!({"a": [9, 3], "b": {}, "c": 2}));
        let missing = json!([{"op": "replace", "path": "/none", "value": 1}]);
        assert_eq!(apply(&mut object, &missing, PatchKind::Json).unwrap_err().code, 422);
    }

    #[test]
    fn prune_takes_away_what_is_no_longer_applied() {
        let mut live =
            json!({"selector": {"a": "1", "b": "2"}, "ports": [{"port": 80}, {"port": 81}], "ip": "x"});
        let before = json!({"selector": {"a": "1", "b": "2"}, "ports": [{"port": 80}, {"port": 81}]});
        prune(&mut live, &before, &json!({"selector": {"a": "1"}, "ports": [{"port": 81}]}));
        assert_eq!(live, json!({"selector": {"a": "1"}, "ports": [{"port": 81}], "ip": "x"}));
    }
}
