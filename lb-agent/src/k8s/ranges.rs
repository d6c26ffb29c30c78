//! The ranges that cluster IPs are taken from: `ServiceCIDR` objects (S-23). Clusters before 1.33 have none.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::networking::v1::ServiceCIDR;

use super::address;
use super::guarded::Guarded;
use super::kinds::Kind;
use super::problems::{Problems, SourceStats};
use crate::model::{Cidr, ObjectName};

/// All `ServiceCIDR` objects.
pub(super) struct ServiceRanges {
    known: BTreeMap<ObjectName, Vec<Cidr>>,
    /// Those of a list that is not complete yet.
    listed: BTreeMap<ObjectName, Vec<Cidr>>,
    problems: Problems,
}

impl ServiceRanges {
    pub(super) fn new() -> Self {
        Self { known: BTreeMap::new(), listed: BTreeMap::new(), problems: Problems::new("ServiceCIDR") }
    }

    fn read(&mut self, object: Guarded<ServiceCIDR>, stats: &SourceStats) -> Option<(ObjectName, Vec<Cidr>)> {
        let Guarded { name, version, body } = object;
        let texts = match body {
            Ok(object) => object.spec.and_then(|spec| spec.cidrs).unwrap_or_default(),
            Err(reason) => {
                self.problems.object(stats, &name, &version, &reason);
                return None;
            }
        };
        let (mut ranges, mut skipped) = (Vec::new(), Vec::new());
        for text in texts {
            match address::parse_range(&text) {
                Some(range) => ranges.push(range),
                None => skipped.push(format!("spec.cidrs: {text:?}")),
            }
        }
        self.problems.fields(stats, &name, &version, &skipped);
        Some((name, ranges))
    }

    fn all(&self) -> BTreeSet<Cidr> {
        self.known.values().flatten().copied().collect()
    }
}

impl Kind for ServiceRanges {
    type Object = ServiceCIDR;
    type Event = BTreeSet<Cidr>;
    const NAME: &'static str = "servicecidrs";
    const PATH: &'static str = "/apis/networking.k8s.io/v1/servicecidrs";
    const OPTIONAL: bool = true;

    fn label_selector(&self) -> Option<String> {
        None
    }

    fn field_selector(&self) -> Option<String> {
        None
    }

    fn begin(&mut self) {
        self.listed.clear();
    }

    fn listed(&mut self, object: Guarded<ServiceCIDR>, stats: &SourceStats) {
        let read = self.read(object, stats);
        self.listed.extend(read);
    }

    fn end(&mut self) -> BTreeSet<Cidr> {
        self.known = std::mem::take(&mut self.listed);
        self.all()
    }

    fn applied(&mut self, object: Guarded<ServiceCIDR>, stats: &SourceStats) -> Option<BTreeSet<Cidr>> {
        let read = self.read(object, stats);
        self.known.extend(read);
        Some(self.all())
    }

    fn deleted(&mut self, name: ObjectName) -> Option<BTreeSet<Cidr>> {
        self.known.remove(&name);
        Some(self.all())
    }

    /// What was known stays; without anything known, no range is.
    fn forbidden(&mut self) -> Option<BTreeSet<Cidr>> {
        Some(self.all())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, cidrs: &[&str]) -> Guarded<ServiceCIDR> {
        Guarded::from_value(
            json!({"metadata": {"name": name, "resourceVersion": "1"}, "spec": {"cidrs": cidrs}}),
        )
    }

    #[test]
    fn several_objects_add_up_and_nonsense_is_skipped() {
        let (mut kind, stats) = (ServiceRanges::new(), SourceStats::default());
        let texts = |ranges: BTreeSet<Cidr>| ranges.iter().map(Cidr::to_string).collect::<Vec<_>>().join(" ");
        kind.begin();
        kind.listed(object("kubernetes", &["10.96.0.0/12", "fd00:96::/112"]), &stats);
        assert_eq!(texts(kind.end()), "10.96.0.0/12 fd00:96::/112");
        let more = kind.applied(object("more", &["10.200.0.0/16", "nonsense"]), &stats).unwrap();
        assert_eq!(texts(more), "10.96.0.0/12 10.200.0.0/16 fd00:96::/112");
        assert_eq!(stats.fields_skipped.into_inner(), 1);
        let less = kind.deleted(ObjectName::new("", "kubernetes")).unwrap();
        assert_eq!(texts(less), "10.200.0.0/16");
    }
}
