//! Rendering the Helm chart: its templates with an engine for Go's templates, and Helm's functions that they use.
//!
//! Like kustomize's, the results are held against the expected files, and against the real Helm where it is installed.

use std::{fs, path::Path};

use anyhow::{Context as _, anyhow};
use gtmpl::{Context, FuncError, Template, Value as Item};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::kustomize::documents;

/// Renders every manifest of the chart, with these values over its own.
pub(crate) fn render(chart: &Path, values: &Value) -> anyhow::Result<Vec<Value>> {
    let read = |name: &str| {
        let text = fs::read_to_string(chart.join(name)).with_context(|| name.to_owned())?;
        documents(&text)?.pop().with_context(|| format!("{name} is empty"))
    };
    let mut all = read("values.yaml")?;
    overlay(&mut all, values);
    let about = read("Chart.yaml")?;
    let context = Context::from(item(&json!({
        "Values": all,
        "Chart": {"AppVersion": about["appVersion"], "Name": about["name"]},
        "Release": {"Namespace": "kube-system", "Name": "lb"},
    })));
    let mut paths: Vec<_> = fs::read_dir(chart.join("templates"))?
        .map(|entry| entry.map(|it| it.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    let mut objects = Vec::new();
    for path in paths {
        let failed = |error: String| anyhow!("{}: {error}", path.display());
        let mut template = Template::default();
        let functions: [(&str, gtmpl::Func); 6] = [
            ("quote", quote),
            ("toYaml", to_json),
            ("toJson", to_json),
            ("nindent", nindent),
            ("default", default),
            ("sha256sum", sha256sum),
        ];
        for (name, function) in functions {
            template.add_func(name, function);
        }
        template.parse(fs::read_to_string(&path)?).map_err(|error| failed(error.to_string()))?;
        let text = template.render(&context).map_err(|error| failed(error.to_string()))?;
        if path.extension().is_some_and(|extension| extension == "yaml") {
            objects.extend(documents(&text).with_context(|| format!("{}:\n{text}", path.display()))?);
        }
    }
    Ok(objects)
}

/// Values over values, as Helm does it: objects are merged, the rest replaced.
fn overlay(values: &mut Value, over: &Value) {
    match (values, over) {
        (Value::Object(values), Value::Object(over)) => {
            for (name, value) in over {
                overlay(values.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (values, over) => *values = over.clone(),
    }
}

fn item(value: &Value) -> Item {
    match value {
        Value::Null => Item::Nil,
        Value::Bool(value) => Item::Bool(*value),
        Value::Number(number) => number.as_i64().map_or(Item::Nil, Item::from),
        Value::String(text) => Item::String(text.clone()),
        Value::Array(items) => Item::Array(items.iter().map(item).collect()),
        Value::Object(fields) => {
            Item::Object(fields.iter().map(|(name, value)| (name.clone(), item(value))).collect())
        }
    }
}

fn value(item: &Item) -> Result<Value, FuncError> {
    Ok(match item {
        Item::Nil => Value::Null,
        Item::Bool(value) => (*value).into(),
        Item::Number(number) => number.as_i64().into(),
        Item::String(text) => text.clone().into(),
        Item::Array(items) => items.iter().map(value).collect::<Result<_, _>>()?,
        Item::Object(fields) | Item::Map(fields) => fields
            .iter()
            .map(|(name, item)| Ok((name.clone(), value(item)?)))
            .collect::<Result<_, FuncError>>()?,
        _ => return Err(FuncError::Generic("a function where a value is expected".into())),
    })
}

fn argument(arguments: &[Item], index: usize) -> Result<&Item, FuncError> {
    arguments.get(index).ok_or_else(|| FuncError::AtLeastXArgs("a function of Helm".into(), index + 1))
}

fn words(item: &Item) -> String {
    match item {
        Item::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn quote(arguments: &[Item]) -> Result<Item, FuncError> {
    Ok(Value::from(words(argument(arguments, 0)?)).to_string().into())
}

/// JSON is YAML, which makes one function of two.
fn to_json(arguments: &[Item]) -> Result<Item, FuncError> {
    Ok(value(argument(arguments, 0)?)?.to_string().into())
}

fn nindent(arguments: &[Item]) -> Result<Item, FuncError> {
    let Value::Number(depth) = value(argument(arguments, 0)?)? else {
        return Err(FuncError::Generic("nindent wants a number".into()));
    };
    let margin = " ".repeat(depth.as_u64().unwrap_or_default() as usize);
    let text = words(argument(arguments, 1)?);
    Ok(format!("\n{margin}{}", text.replace('\n', &format!("\n{margin}"))).into())
}

fn default(arguments: &[Item]) -> Result<Item, FuncError> {
    let given = argument(arguments, 1)?;
    let empty = matches!(value(given)?, Value::Null) || words(given).is_empty();
    Ok(argument(arguments, if empty { 0 } else { 1 })?.clone())
}

fn sha256sum(arguments: &[Item]) -> Result<Item, FuncError> {
    let digest = Sha256::digest(words(argument(arguments, 0)?));
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into())
}
