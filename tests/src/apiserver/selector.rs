//! Label and field selectors.

use serde_json::Value;

use super::{resources::ResourceType, status::ApiError};

/// One requirement on a label.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Requirement {
    fn matches(&self, labels: Option<&Value>) -> bool {
        let label = |key: &str| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str);
        match self {
            Self::In(key, values) => label(key).is_some_and(|value| values.iter().any(|it| it == value)),
            Self::NotIn(key, values) => label(key).is_none_or(|value| values.iter().all(|it| it != value)),
            Self::Exists(key) => label(key).is_some(),
            Self::Absent(key) => label(key).is_none(),
        }
    }
}

/// What a list or a watch is restricted to: labels and fields. The default matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Requirement>,
    /// Path, wanted equal, value.
    fields: Vec<(String, bool, String)>,
}

impl Selector {
    /// Parses a label selector as in `labelSelector=`: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b)`, `a`, `!a`.
    ///
    /// # Errors
    /// It is not one (400).
    pub fn labels(text: &str) -> Result<Self, ApiError> {
        let labels = split_outside_parentheses(text)
            .into_iter()
            .map(requirement)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| ApiError::bad_request(format!("unable to parse requirement: {text:?}")))?;
        Ok(Self { labels, fields: Vec::new() })
    }

    /// Adds a field selector as in `fieldSelector=`: `metadata.name=a,spec.nodeName!=b`.
    ///
    /// # Errors
    /// It is not one, or the field cannot be selected by (400).
    pub fn with_fields(mut self, text: &str, resource: &ResourceType) -> Result<Self, ApiError> {
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (field, equal, value) = if let Some((field, value)) = part.split_once("!=") {
                (field, false, value)
            } else if let Some((field, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (field, true, value)
            } else {
                return Err(ApiError::bad_request(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                )));
            };
            if !selectable(resource, field) {
                return Err(ApiError::bad_request(format!("field label not supported: {field}")));
            }
            self.fields.push((field.to_owned(), equal, value.to_owned()));
        }
        Ok(self)
    }

    /// Whether an object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels");
        self.labels.iter().all(|requirement| requirement.matches(labels))
            && self.fields.iter().all(|(path, equal, wanted)| {
                let pointer = format!("/{}", path.replace('.', "/"));
                let value = match object.pointer(&pointer) {
                    Some(Value::String(text)) => text.clone(),
                    None | Some(Value::Null) => String::new(),
                    Some(other) => other.to_string(),
                };
                (value == *wanted) == *equal
            })
    }
}

fn selectable(resource: &ResourceType, field: &str) -> bool {
    let more: &[&str] = match resource.kind {
        "Pod" => &["spec.nodeName", "status.phase", "status.podIP", "spec.restartPolicy"],
        "Service" => &["spec.clusterIP", "spec.type"],
        "Node" => &["spec.unschedulable"],
        "Namespace" => &["status.phase"],
        "Event" => {
            &["involvedObject.kind", "involvedObject.name", "involvedObject.namespace", "reason", "type"]
        }
        _ => &[],
    };
    field == "metadata.name"
        || (field == "metadata.namespace" && resource.namespaced)
        || more.contains(&field)
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (position, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..position]);
                start = position + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn requirement(text: &str) -> Option<Requirement> {
    let key = |text: &str| {
        let text = text.trim();
        let valid = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        (!text.is_empty() && text.chars().all(valid)).then(|| text.to_owned())
    };
    let values = |text: &str| {
        let inner = text.trim().strip_prefix('(')?.strip_suffix(')')?;
        Some(inner.split(',').map(|value| value.trim().to_owned()).collect::<Vec<_>>())
    };
    if let Some((name, set)) = text.split_once(" notin ") {
        return Some(Requirement::NotIn(key(name)?, values(set)?));
    }
    if let Some((name, set)) = text.split_once(" in ") {
        return Some(Requirement::In(key(name)?, values(set)?));
    }
    if let Some((name, value)) = text.split_once("!=") {
        return Some(Requirement::NotIn(key(name)?, vec![value.trim().to_owned()]));
    }
    if let Some((name, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Some(Requirement::In(key(name)?, vec![value.trim().to_owned()]));
    }
    match text.strip_prefix('!') {
        Some(name) => Some(Requirement::Absent(key(name)?)),
        None => Some(Requirement::Exists(key(text)?)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::resources::ResourceType, Selector};

    #[test]
    fn labels() {
        let object = json!({"metadata": {"labels": {"app": "order", "tier": "web"}}});
        for (selector, expected) in [
            ("", true),
            ("app=order", true),
            ("app==order,tier!=db", true),
            ("app in (payment, order),tier", true),
            ("app notin (order)", false),
            ("!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name", true),
            ("!app", false),
            ("zone!=a", true),
            ("zone", false),
        ] {
            assert_eq!(Selector::labels(selector).unwrap().matches(&object), expected, "{selector}");
        }
        assert_eq!(Selector::labels("a b").unwrap_err().code, 400);
    }

    #[test]
    fn fields() {
        let pods = ResourceType::by_plural("pods").unwrap();
        let object = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1"}});
        for (selector, expected) in [
            ("spec.nodeName=n1", true),
            ("spec.nodeName!=n1", false),
            ("metadata.name==a,status.phase=", true),
        ] {
            let selector = Selector::default().with_fields(selector, pods).unwrap();
            assert_eq!(selector.matches(&object), expected, "{selector:?}");
        }
        assert_eq!(Selector::default().with_fields("spec.color=red", pods).unwrap_err().code, 400);
    }
}
