//! What an image registry serves: one image, small, and the same on every start.

/// The manifest of `/v2/pause/manifests/testing`: names its layers.
pub fn manifest() -> String {
    let layers: Vec<serde_json::Value> = (0..LAYERS)
        .map(|number| serde_json::json!({"digest": digest(number), "size": layer(number).len()}))
        .collect();
    serde_json::json!({"schemaVersion": 2, "layers": layers}).to_string()
}

/// How many layers the image has.
pub const LAYERS: usize = 2;
/// Bytes of a layer.
const SIZE: usize = 300_000;

/// What a layer is called.
pub fn digest(number: usize) -> String {
    format!("layer:{number}")
}

/// The content of a layer: text without repetition.
pub fn layer(number: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number as u64 + 1);
    let mut text = String::with_capacity(SIZE + 16);
    while text.len() < SIZE {
        // A step of Knuth's MMIX generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(&format!("{state:016x}"));
    }
    text.truncate(SIZE);
    text
}

/// The answer to a GET request for this path; `None`: there is no such thing (404).
pub(super) fn answer(path: &str) -> Option<String> {
    let rest = path.strip_prefix("/v2/")?;
    match rest.strip_prefix("pause/") {
        None => rest.is_empty().then(|| "{}".to_owned()),
        Some("manifests/testing") => Some(manifest()),
        Some(other) => {
            let wanted = other.strip_prefix("blobs/")?;
            (0..LAYERS).find(|number| digest(*number) == wanted).map(layer)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_found_by_the_manifest() {
        let said: serde_json::Value = serde_json::from_str(&manifest()).unwrap();
        for entry in said["layers"].as_array().unwrap() {
            let body = answer(&format!("/v2/pause/blobs/{}", entry["digest"].as_str().unwrap())).unwrap();
            assert_eq!(body.len(), usize::try_from(entry["size"].as_u64().unwrap()).unwrap());
        }
        assert_ne!(layer(0), layer(1));
        assert_eq!(answer("/v2/").as_deref(), Some("{}"));
        assert_eq!((answer("/v2/other"), answer("/v2/pause/blobs/layer:9")), (None, None));
    }
}
