//! The scheduler: pods go to nodes in turn, unless they ask for one.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use super::{is_deleting, place, report};
use crate::apiserver::{ApiHandle, ChangeKind, Changes, text};

pub(super) async fn run(api: ApiHandle, mut changes: Changes) {
    let (mut nodes, mut waiting, mut turn) = (BTreeMap::new(), BTreeMap::new(), 0);
    while let Some(change) = changes.next().await {
        let gone = change.kind == ChangeKind::Deleted;
        match (change.resource.kind, gone) {
            ("Node", false) => drop(nodes.insert(place(&change.object), Arc::clone(&change.object))),
            ("Node", true) => drop(nodes.remove(&place(&change.object))),
            (_, gone) => {
                let placed = !text(&change.object, "/spec/nodeName").is_empty();
                if gone || placed || is_deleting(&change.object) {
                    waiting.remove(&place(&change.object));
                } else {
                    waiting.insert(place(&change.object), Arc::clone(&change.object));
                }
            }
        }
        // A new node may be what some pod has been waiting for.
        waiting.retain(|(namespace, name), pod| {
            let fitting: Vec<&Value> =
                nodes.values().map(Arc::as_ref).filter(|node| fits(pod, node)).collect();
            let Some(node) = fitting.get(turn % fitting.len().max(1)) else { return true };
            turn += 1;
            report("binding a pod", api.bind(namespace, name, text(node, "/metadata/name")));
            false
        });
    }
}

fn fits(pod: &Value, node: &Value) -> bool {
    let labels = node.pointer("/metadata/labels");
    let wanted = pod.pointer("/spec/nodeSelector").and_then(Value::as_object);
    node.pointer("/spec/unschedulable") != Some(&Value::Bool(true))
        && wanted
            .into_iter()
            .flatten()
            .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}
