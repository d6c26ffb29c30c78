//! What the pinned tables of a running or dead agent say, for people and for programs.

mod backends;
mod connections;
mod drops;
mod events;
mod services;
mod table;
mod top;
mod words;

pub(crate) use backends::class_name;
pub use backends::{BackendRow, backend_rows};
pub use connections::{ConnectionRow, connection_rows};
pub use drops::{DropRow, drop_rows};
pub use events::EventRow;
pub use services::{ServiceRow, service_rows};
pub use table::{Column, TableText};
pub use top::{Look, ReasonRate, Top, TopOrder, TopRow};
pub(crate) use words::{entry, span};

use crate::apply::TablesView;
use crate::plan::ServicePortKey;

/// Selects rows by Service: `namespace/name`, or `name` in any namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFilter {
    namespace: Option<String>,
    name: String,
}

impl std::str::FromStr for ServiceFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        if name.is_empty() || name.contains('/') || namespace == Some("") {
            return Err(format!("`{text}` is no Service: expected name or namespace/name"));
        }
        Ok(Self { namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }
}

impl ServiceFilter {
    /// True when the Service is meant.
    pub fn matches(&self, key: Option<&ServicePortKey>) -> bool {
        key.is_some_and(|key| {
            *key.service.name == *self.name
                && self.namespace.as_ref().is_none_or(|namespace| **namespace == *key.service.namespace)
        })
    }
}

/// The Service port of a row.
fn key_of(view: &TablesView, index: u32) -> Option<&ServicePortKey> {
    let at = view.services.binary_search_by_key(&index, |service| service.index).ok()?;
    view.services[at].key.as_ref()
}

/// A Service port as people write it.
pub(crate) fn name_of(key: Option<&ServicePortKey>) -> String {
    match key {
        Some(key) if key.port_name.is_empty() => key.service.to_string(),
        Some(key) => format!("{}:{}", key.service, key.port_name),
        None => "-".to_owned(),
    }
}

/// Name of an IP protocol.
pub(crate) fn protocol_name(number: u8) -> String {
    match number {
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, ObjectName, Protocol};

    #[test]
    fn a_filter_names_a_service_with_or_without_its_namespace() {
        let key = ServicePortKey {
            service: ObjectName::new("shop", "web"),
            port_name: "http".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        };
        let matches = |text: &str| text.parse::<ServiceFilter>().unwrap().matches(Some(&key));
        assert!(matches("web") && matches("shop/web"));
        assert!(!matches("other/web") && !matches("we"));
        assert!("a/b/c".parse::<ServiceFilter>().is_err());
        assert_eq!(name_of(Some(&key)), "shop/web:http");
    }
}
