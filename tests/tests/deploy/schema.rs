//! Validation against Kubernetes' own schema (`tests/data/deploy/kubernetes-schema.json`: the definitions of its OpenAPI
//! description that our kinds reach, without their descriptions). Unknown fields are errors, as is a keyword of the schema that is
//! not known here.

use std::path::Path;

use anyhow::Context;
use serde_json::Value;

/// The definitions.
pub(crate) struct Schema(Value);

impl Schema {
    pub(crate) fn load() -> anyhow::Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/deploy/kubernetes-schema.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(Self(serde_json::from_str(&text)?))
    }

    /// Everything that is wrong with an object, each with its place.
    pub(crate) fn problems(&self, object: &Value) -> Vec<String> {
        let part = |field: &str| object[field].as_str().unwrap_or_default();
        let kind = format!("{}/{}", part("apiVersion"), part("kind"));
        let Some(reference) = self.0["kinds"].get(&kind) else {
            return vec![format!("{kind}: no such kind")];
        };
        let mut problems = Vec::new();
        self.reference(reference, object, &kind, &mut problems);
        problems
    }

    fn reference(&self, reference: &Value, value: &Value, place: &str, problems: &mut Vec<String>) {
        let pointer = reference.as_str().and_then(|it| it.strip_prefix('#')).unwrap_or_default();
        match self.0.pointer(pointer) {
            Some(schema) => self.check(schema, value, place, problems),
            None => problems.push(format!("{place}: the schema lacks {reference}")),
        }
    }

    fn check(&self, schema: &Value, value: &Value, place: &str, problems: &mut Vec<String>) {
        for (keyword, wanted) in schema.as_object().into_iter().flatten() {
            let holds = match keyword.as_str() {
                "$ref" => {
                    self.reference(wanted, value, place, problems);
                    true
                }
                "type" => match wanted {
                    Value::Array(types) => types.iter().any(|it| has_type(value, it)),
                    one => has_type(value, one),
                },
                "enum" => value.is_null() || wanted.as_array().is_some_and(|values| values.contains(value)),
                "required" => {
                    let missing = |field: &&Value| field.as_str().is_some_and(|it| value.get(it).is_none());
                    let missing: Vec<_> = wanted.as_array().into_iter().flatten().filter(missing).collect();
                    problems.extend(missing.iter().map(|field| format!("{place}: lacks {field}")));
                    true
                }
                "oneOf" => {
                    let fits = |schema: &&Value| {
                        let mut found = Vec::new();
                        self.check(schema, value, place, &mut found);
                        found.is_empty()
                    };
                    wanted.as_array().into_iter().flatten().filter(fits).count() == 1
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(wanted, item, &format!("{place}[{index}]"), problems);
                    }
                    true
                }
                "properties" => {
                    for (field, schema) in wanted.as_object().into_iter().flatten() {
                        if let Some(value) = value.get(field) {
                            self.check(schema, value, &format!("{place}.{field}"), problems);
                        }
                    }
                    true
                }
                "additionalProperties" => {
                    for (field, value) in value.as_object().into_iter().flatten() {
                        let known = schema["properties"].get(field).is_some();
                        match wanted {
                            _ if known => {}
                            Value::Bool(false) => problems.push(format!("{place}: unknown field {field}")),
                            _ => self.check(wanted, value, &format!("{place}.{field}"), problems),
                        }
                    }
                    true
                }
                "format" => match wanted.as_str() {
                    Some("int32") => value.as_i64().is_none_or(|it| i32::try_from(it).is_ok()),
                    Some("int64" | "byte" | "date-time" | "double") => true,
                    _ => false,
                },
                _ => false,
            };
            if !holds {
                problems.push(format!("{place}: {value} is not {keyword} {wanted}"));
            }
        }
    }
}

fn has_type(value: &Value, name: &Value) -> bool {
    match name.as_str().unwrap_or_default() {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        _ => false,
    }
}
