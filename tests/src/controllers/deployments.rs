//! The Deployment controller. It makes the pods itself: a ReplicaSet in between is of no use to the lab.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::{Value, json};

use super::{Place, is_deleting, is_owned_by, is_ready, place, report};
use crate::apiserver::{ApiError, ApiHandle, Change, ChangeKind, Changes, DeleteOptions, Random, text};

/// Label with the hash of the template a pod was made from.
const HASH: &str = "pod-template-hash";

pub(super) async fn run(api: ApiHandle, mut changes: Changes) {
    let mut random = Random::new();
    while let Some(change) = changes.next().await {
        let mut touched = BTreeSet::new();
        touch(&api, &change, &mut touched);
        // What has happened meanwhile is one round.
        while let Some(change) = changes.try_next() {
            touch(&api, &change, &mut touched);
        }
        for (namespace, name) in touched {
            report("Deployment", reconcile(&api, &namespace, &name, &mut random));
        }
    }
}

fn touch(api: &ApiHandle, change: &Change, touched: &mut BTreeSet<Place>) {
    if change.resource.kind == "Deployment" {
        if change.kind == ChangeKind::Deleted {
            report("removing the pods of a Deployment", cascade(api, &change.object));
        } else {
            touched.insert(place(&change.object));
        }
        return;
    }
    let owners = change.object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    for owner in owners.into_iter().flatten().filter(|owner| owner["kind"] == "Deployment") {
        touched.insert((place(&change.object).0, text(owner, "/name").to_owned()));
    }
}

fn cascade(api: &ApiHandle, deployment: &Value) -> Result<(), ApiError> {
    for pod in pods_of(api, deployment)? {
        delete(api, &pod)?;
    }
    Ok(())
}

fn pods_of(api: &ApiHandle, deployment: &Value) -> Result<Vec<Arc<Value>>, ApiError> {
    let mut pods = api.values("pods", Some(text(deployment, "/metadata/namespace")))?;
    let uid = text(deployment, "/metadata/uid");
    pods.retain(|pod| is_owned_by(pod, uid) && !is_deleting(pod));
    Ok(pods)
}

fn delete(api: &ApiHandle, pod: &Value) -> Result<(), ApiError> {
    let (namespace, name) = place(pod);
    match api.delete_value("pods", &namespace, &name, &DeleteOptions::default()) {
        Err(error) if error.code == 404 => Ok(()),
        done => done,
    }
}

fn reconcile(api: &ApiHandle, namespace: &str, name: &str, random: &mut Random) -> Result<(), ApiError> {
    let deployment = api.value("deployments", namespace, name)?;
    if is_deleting(&deployment) {
        return Ok(());
    }
    let wanted = deployment.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
    let wanted = usize::try_from(wanted).unwrap_or_default();
    let hash = template_hash(&deployment["spec"]["template"]);
    let mut pods = pods_of(api, &deployment)?;
    // Failed pods are replaced.
    for pod in pods.extract_if(.., |pod| ["Failed", "Succeeded"].contains(&text(pod, "/status/phase"))) {
        delete(api, &pod)?;
    }
    let (mut new, mut old): (Vec<_>, Vec<_>) =
        pods.into_iter().partition(|pod| text(pod, &format!("/metadata/labels/{HASH}")) == hash);
    let ready = |pods: &[Arc<Value>]| pods.iter().filter(|pod| is_ready(pod)).count();
    // First to go is what does not serve yet.
    new.sort_by_key(|pod| is_ready(pod));
    old.sort_by_key(|pod| is_ready(pod));
    for pod in new.drain(..new.len().saturating_sub(wanted)) {
        delete(api, &pod)?;
    }
    if deployment.pointer("/spec/strategy/type").and_then(Value::as_str) == Some("Recreate") {
        for pod in old.drain(..) {
            delete(api, &pod)?;
        }
    }
    let mut serving = ready(&new) + ready(&old);
    while let Some(first) = old.first() {
        let first_ready = is_ready(first);
        let surplus = new.len() + old.len() > wanted;
        if (first_ready && serving <= wanted) || (!first_ready && !surplus) {
            break;
        }
        serving -= usize::from(first_ready);
        delete(api, &old.remove(0))?;
    }
    // One more than wanted while old pods are being replaced.
    let most = wanted + usize::from(!old.is_empty() && wanted > 0);
    while new.len() < wanted && new.len() + old.len() < most {
        new.push(Arc::new(api.create(&pod(&deployment, &hash, random))?));
    }
    status(api, &deployment, &new, &old)
}

fn pod(deployment: &Value, hash: &str, random: &mut Random) -> Value {
    let (namespace, name) = place(deployment);
    let template = &deployment["spec"]["template"];
    let mut metadata = template["metadata"].clone();
    if !metadata.is_object() {
        metadata = json!({});
    }
    metadata["name"] = format!("{name}-{hash}-{}", random.suffix()).into();
    metadata["generateName"] = format!("{name}-{hash}-").into();
    metadata["namespace"] = namespace.into();
    metadata["labels"][HASH] = hash.into();
    metadata["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "Deployment", "name": name, "uid": deployment["metadata"]["uid"],
        "controller": true, "blockOwnerDeletion": true,
    }]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// Ten characters that stand for the template (FNV-1a of its text; keys are sorted).
fn template_hash(template: &Value) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let text = template.to_string();
    let mut hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mut name = String::new();
    for _ in 0..10 {
        name.push(char::from(ALPHABET[(hash % ALPHABET.len() as u64) as usize]));
        hash /= ALPHABET.len() as u64;
    }
    name
}

fn status(
    api: &ApiHandle,
    deployment: &Value,
    new: &[Arc<Value>],
    old: &[Arc<Value>],
) -> Result<(), ApiError> {
    let ready = new.iter().chain(old).filter(|pod| is_ready(pod)).count();
    let wanted = deployment.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
    let missing = usize::try_from(wanted).unwrap_or_default().saturating_sub(ready);
    let available = missing == 0;
    let status = json!({"status": {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": new.len() + old.len(),
        "updatedReplicas": new.len(),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": missing,
        "conditions": [{
            "type": "Available",
            "status": if available { "True" } else { "False" },
            "reason": if available { "MinimumReplicasAvailable" } else { "MinimumReplicasUnavailable" },
        }],
    }});
    let (namespace, name) = place(deployment);
    api.patch_status_value("deployments", &namespace, &name, &status).map(drop)
}
