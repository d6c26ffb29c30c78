//! Which endpoint addresses are wanted, so that a way is kept to exactly those.

use std::net::IpAddr;

use crate::model::{KeyedMap, ObjectName};
use crate::plan::{PlanChange, ServicePlan};

/// Endpoint addresses of all planned Services, counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Endpoints {
    /// Sorted, each once.
    by_service: KeyedMap<ObjectName, Box<[IpAddr]>>,
    count: KeyedMap<IpAddr, u32>,
    /// Addresses of before, of what was taken in since the batch began.
    released: Vec<IpAddr>,
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

    /// Begins to take in a batch, change by change, each before it is applied. Of a full one no address stays that is not in
    /// it.
    pub(super) fn begin(&mut self, full: bool) {
        if full {
            self.released.extend(self.by_service.drain().flat_map(|(_, addresses)| addresses));
        }
    }

    /// Takes in a change. Returns the addresses that came.
    pub(super) fn take_in(&mut self, change: &PlanChange) -> Vec<IpAddr> {
        let mut came = Vec::new();
        let wanted = change.plan.as_ref().map(addresses_of).unwrap_or_default();
        for address in &wanted {
            let count = self.count.entry(*address).or_default();
            *count += 1;
            if *count == 1 {
                came.push(*address);
            }
        }
        let before = if wanted.is_empty() {
            self.by_service.remove(&change.service)
        } else {
            self.by_service.insert(change.service.clone(), wanted)
        };
        self.released.extend(before.into_iter().flatten());
        came
    }

    /// Ends a batch. Returns the addresses that went.
    pub(super) fn end(&mut self) -> Vec<IpAddr> {
        let mut went = Vec::new();
        for address in std::mem::take(&mut self.released) {
            if let Some(count) = self.count.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    self.count.remove(&address);
                    went.push(address);
                }
            }
        }
        went
    }
}

fn addresses_of(plan: &ServicePlan) -> Box<[IpAddr]> {
    let endpoints = plan.ports.iter().flat_map(|port| &port.endpoints);
    let mut addresses: Vec<IpAddr> = endpoints.map(|endpoint| endpoint.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, Protocol};
    use crate::plan::{ClassPlan, EndpointPlan, ServicePortKey, ServicePortPlan, Verdict};

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

    /// Takes in a batch. Returns the addresses that came, and those that went.
    fn take_in(endpoints: &mut Endpoints, full: bool, changes: Vec<PlanChange>) -> [Vec<IpAddr>; 2] {
        endpoints.begin(full);
        let came = changes.iter().flat_map(|change| endpoints.take_in(change)).collect();
        [came, endpoints.end()]
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn an_address_goes_with_the_last_service_that_has_it() {
        let mut endpoints = Endpoints::default();
        let both = vec![change("a", &["10.0.0.1", "10.0.0.2"]), change("b", &["10.0.0.2"])];
        let [came, _] = take_in(&mut endpoints, true, both);
        assert_eq!(came, ips(&["10.0.0.1", "10.0.0.2"]));
        let changes = take_in(&mut endpoints, false, vec![change("a", &["10.0.0.3"])]);
        assert_eq!(changes, [ips(&["10.0.0.3"]), ips(&["10.0.0.1"])]);
        let gone = PlanChange { plan: None, ..change("b", &[]) };
        assert_eq!(take_in(&mut endpoints, false, vec![gone]), [ips(&[]), ips(&["10.0.0.2"])]);
        assert!(endpoints.contains(ips(&["10.0.0.3"])[0]));
    }

    #[test]
    fn a_full_batch_replaces_everything_and_what_stays_neither_comes_nor_goes() {
        let mut endpoints = Endpoints::default();
        take_in(&mut endpoints, true, vec![change("a", &["10.0.0.1"]), change("b", &["10.0.0.2"])]);
        let changes = take_in(&mut endpoints, true, vec![change("a", &["10.0.0.1"])]);
        assert_eq!(changes, [ips(&[]), ips(&["10.0.0.2"])]);
        assert_eq!(endpoints.addresses().collect::<Vec<_>>(), ips(&["10.0.0.1"]));
    }
}
