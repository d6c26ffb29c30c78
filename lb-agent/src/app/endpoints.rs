//! Which endpoint addresses are wanted, so that a way is kept to exactly those.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use crate::model::ObjectName;
use crate::plan::{PlanBatch, ServicePlan};

/// Endpoint addresses of all planned Services, counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Endpoints {
    by_service: HashMap<ObjectName, BTreeSet<IpAddr>>,
    count: HashMap<IpAddr, usize>,
}

/// Addresses that came and went with a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EndpointChanges {
    pub(super) came: Vec<IpAddr>,
    pub(super) went: Vec<IpAddr>,
}

impl Endpoints {
    /// Addresses wanted by some Service.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.count.keys().copied()
    }

    /// True when some Service has the address.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.count.contains_key(&address)
    }

    /// Takes in a batch before it is applied.
    pub(super) fn take_in(&mut self, batch: &PlanBatch) -> EndpointChanges {
        let mut changes = EndpointChanges::default();
        let mut released = Vec::new();
        if batch.full {
            released.extend(self.by_service.drain().flat_map(|(_, addresses)| addresses));
        }
        for change in &batch.changes {
            let wanted = change.plan.as_ref().map(addresses_of).unwrap_or_default();
            for address in &wanted {
                let count = self.count.entry(*address).or_default();
                *count += 1;
                if *count == 1 {
                    changes.came.push(*address);
                }
            }
            let before = if wanted.is_empty() {
                self.by_service.remove(&change.service)
            } else {
                self.by_service.insert(change.service.clone(), wanted)
            };
            released.extend(before.into_iter().flatten());
        }
        for address in released {
            if let Some(count) = self.count.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    self.count.remove(&address);
                    changes.went.push(address);
                }
            }
        }
        changes
    }
}

fn addresses_of(plan: &ServicePlan) -> BTreeSet<IpAddr> {
    plan.ports.iter().flat_map(|port| port.endpoints.iter().map(|endpoint| endpoint.address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, Protocol};
    use crate::plan::{ClassPlan, EndpointPlan, PlanChange, ServicePortKey, ServicePortPlan, Verdict};

    fn change(name: &str, addresses: &[&str]) -> PlanChange {
        let service = ObjectName::new("default", name);
        let endpoint = |text: &&str| EndpointPlan {
            address: text.parse().unwrap(),
            port: 8080,
            local: true,
            serving: true,
        };
        let port = ServicePortPlan {
            key: ServicePortKey {
                service: service.clone(),
                port_name: "".into(),
                protocol: Protocol::Tcp,
                family: Family::V4,
            },
            endpoints: addresses.iter().map(endpoint).collect(),
            internal: ClassPlan { frontends: Vec::new(), verdict: Verdict::Reject },
            external: None,
            affinity_timeout: None,
            algorithm: crate::plan::Algorithm::Random,
        };
        let plan =
            ServicePlan { service: service.clone(), created: None, ports: vec![port], health_check: None };
        PlanChange { service, plan: Some(plan), received: None }
    }

    fn batch(full: bool, changes: Vec<PlanChange>) -> PlanBatch {
        PlanBatch { full, changes }
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn an_address_goes_with_the_last_service_that_has_it() {
        let mut endpoints = Endpoints::default();
        let both = vec![change("a", &["10.0.0.1", "10.0.0.2"]), change("b", &["10.0.0.2"])];
        assert_eq!(endpoints.take_in(&batch(true, both)).came, ips(&["10.0.0.1", "10.0.0.2"]));
        let changes = endpoints.take_in(&batch(false, vec![change("a", &["10.0.0.3"])]));
        assert_eq!(changes.came, ips(&["10.0.0.3"]));
        assert_eq!(changes.went, ips(&["10.0.0.1"]));
        let gone = PlanChange { plan: None, ..change("b", &[]) };
        assert_eq!(endpoints.take_in(&batch(false, vec![gone])).went, ips(&["10.0.0.2"]));
        assert!(endpoints.contains(ips(&["10.0.0.3"])[0]));
    }

    #[test]
    fn a_full_batch_replaces_everything_and_what_stays_neither_comes_nor_goes() {
        let mut endpoints = Endpoints::default();
        endpoints.take_in(&batch(true, vec![change("a", &["10.0.0.1"]), change("b", &["10.0.0.2"])]));
        let changes = endpoints.take_in(&batch(true, vec![change("a", &["10.0.0.1"])]));
        assert_eq!(changes, EndpointChanges { came: vec![], went: ips(&["10.0.0.2"]) });
        assert_eq!(endpoints.addresses().collect::<Vec<_>>(), ips(&["10.0.0.1"]));
    }
}
