//! Which Services and EndpointSlices are ours (S-01, S-02), and what holds for those that do not say.

use std::collections::BTreeMap;

use lb_common::layout::Algorithm;

const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The field selector for Services; headless ones are none of our business.
pub(super) const SERVICE_FIELDS: &str = "spec.clusterIP!=None";

/// Selects by the label `service.kubernetes.io/service-proxy-name`: objects without it, or those that carry our name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The proxy name to serve; `None` is the default proxy, which serves what carries no name at all, not even an
    /// empty one.
    pub service_proxy_name: Option<String>,
    /// How Services without the annotation `lb-agent/load-balancing` choose an endpoint.
    pub algorithm: Algorithm,
}

impl Selection {
    /// The selector in the API's notation, for Services and EndpointSlices alike.
    pub(super) fn label_selector(&self) -> String {
        match &self.service_proxy_name {
            Some(name) => format!("{PROXY_NAME}={name},!{HEADLESS}"),
            None => format!("!{PROXY_NAME},!{HEADLESS}"),
        }
    }

    /// The same, applied here: a directory has no API server that selects.
    pub(super) fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        let label = |name| labels.and_then(|labels| labels.get(name));
        label(HEADLESS).is_none() && label(PROXY_NAME) == self.service_proxy_name.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn the_default_proxy_takes_only_unnamed_objects() {
        let selection = Selection::default();
        assert!(selection.matches(None));
        assert!(selection.matches(Some(&labels(&[("app", "web")]))));
        assert!(!selection.matches(Some(&labels(&[(PROXY_NAME, "other")]))));
        assert!(!selection.matches(Some(&labels(&[(PROXY_NAME, "")]))));
        assert!(!selection.matches(Some(&labels(&[(HEADLESS, "")]))));
        assert_eq!(
            selection.label_selector(),
            "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless"
        );
    }

    #[test]
    fn a_named_proxy_takes_only_its_own() {
        let selection = Selection { service_proxy_name: Some("ours".into()), ..Selection::default() };
        assert!(!selection.matches(None));
        assert!(selection.matches(Some(&labels(&[(PROXY_NAME, "ours")]))));
        assert!(!selection.matches(Some(&labels(&[(PROXY_NAME, "other")]))));
        assert!(!selection.matches(Some(&labels(&[(PROXY_NAME, "ours"), (HEADLESS, "")]))));
        assert_eq!(
            selection.label_selector(),
            "service.kubernetes.io/service-proxy-name=ours,!service.kubernetes.io/headless"
        );
    }
}
