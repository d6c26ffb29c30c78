//! From the text to the fields that are set, each known and of its type.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::duration;
use super::fields::{Field, Kind, find, is_section, names_below};

/// The group and version that is read.
pub(super) const VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// The kind that is read.
pub(super) const KIND: &str = "KubeProxyConfiguration";

/// What a field says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Given {
    Bool(bool),
    Int(i32),
    Text(String),
    Duration(Duration),
    Texts(Vec<String>),
    /// A value that is not looked at.
    Other,
}

/// The fields that say something else than their absence would: kube-proxy's tools write every field, empty ones too.
pub(super) type Fields = BTreeMap<&'static str, Given>;

/// The fields that a text sets.
///
/// # Errors
/// All that is wrong, a line for each.
pub(super) fn given(text: &str) -> Result<Fields, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    let document: Value =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    let Value::Object(object) = &document else {
        return Err(format!("it holds no object of kind {KIND}"));
    };
    let word = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    if (word("apiVersion"), word("kind")) != (VERSION, KIND) {
        return Err(format!(
            "it holds `{}` of `{}`; expected `kind: {KIND}` of `apiVersion: {VERSION}`",
            word("kind"),
            word("apiVersion"),
        ));
    }
    let (mut fields, mut wrong) = (Fields::new(), Vec::new());
    section("", object, &mut fields, &mut wrong);
    if wrong.is_empty() { Ok(fields) } else { Err(wrong.join("; ")) }
}

fn section(
    path: &str,
    object: &serde_json::Map<String, Value>,
    fields: &mut Fields,
    wrong: &mut Vec<String>,
) {
    for (name, value) in object {
        let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        if let Some(field) = find(&at) {
            match take(field, value) {
                Ok(Some(given)) => {
                    fields.insert(field.path, given);
                }
                Ok(None) => {}
                Err(expected) => wrong.push(format!("{at} is {value}; expected {expected}")),
            }
        } else if is_section(&at) {
            match value {
                Value::Object(below) => section(&at, below, fields, wrong),
                Value::Null => {}
                _ => wrong.push(format!("{at} is {value}; expected an object")),
            }
        } else {
            wrong.push(unknown(path, name, &at));
        }
    }
}

/// What to say of a field that nobody knows; with the name that was probably meant.
fn unknown(section: &str, name: &str, at: &str) -> String {
    let same = |known: &&&str| known.eq_ignore_ascii_case(name);
    match names_below(section).iter().find(same) {
        Some(known) => format!("{at} is no field of {KIND} (it is spelled {known})"),
        None => format!("{at} is no field of {KIND}"),
    }
}

/// The value of a field; `None` when it says no more than its absence.
fn take(field: &Field, value: &Value) -> Result<Option<Given>, &'static str> {
    if value.is_null() {
        return Ok(None);
    }
    let whole =
        || value.as_i64().and_then(|number| i32::try_from(number).ok()).ok_or("a whole number of 32 bits");
    let given = match field.kind {
        Kind::Bool => Some(value.as_bool().ok_or("true or false")?).filter(|it| *it).map(Given::Bool),
        Kind::OptionalBool => Some(Given::Bool(value.as_bool().ok_or("true or false")?)),
        Kind::Int => Some(whole()?).filter(|number| *number != 0).map(Given::Int),
        Kind::OptionalInt => Some(Given::Int(whole()?)),
        Kind::Number => {
            Some(value.as_f64().ok_or("a number")?).filter(|number| *number != 0.0).map(|_| Given::Other)
        }
        Kind::Text => Some(value.as_str().ok_or("a text")?)
            .filter(|text| !text.is_empty())
            .map(|text| Given::Text(text.into())),
        Kind::Duration => {
            let text = value.as_str().and_then(duration::parse).ok_or("a duration such as 30s or 1h0m0s")?;
            Some(text).filter(|it| !it.is_zero()).map(Given::Duration)
        }
        Kind::Texts => {
            let texts: Option<Vec<String>> = value
                .as_array()
                .map(|list| list.iter().map(|it| it.as_str().map(str::to_owned)).collect())
                .ok_or("a list of texts")?;
            Some(texts.ok_or("a list of texts")?).filter(|texts| !texts.is_empty()).map(Given::Texts)
        }
        Kind::Any => (!is_empty(value)).then_some(Given::Other),
    };
    Ok(given)
}

/// True for what a tool writes that sets nothing: zeros and what contains only such.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text == "0" || text == "0s",
        Value::Array(list) => list.iter().all(is_empty),
        Value::Object(object) => object.values().all(is_empty),
    }
}
