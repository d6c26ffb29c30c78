//! Joining a Service port with its endpoints: by name and protocol over all slices of one family (S-11, S-13).

use std::borrow::Borrow;

use super::categorize::Candidate;
use crate::model::{EndpointSlice, Family, NodeFacts, Service, ServicePort};

/// The endpoints of a Service port in one family, sorted by address and port, each address and port once.
///
/// The order of slices, endpoints and hints does not show in the outcome.
pub(super) fn candidates(
    service: &Service,
    port: &ServicePort,
    family: Family,
    slices: &[impl Borrow<EndpointSlice>],
    node: &NodeFacts,
) -> Vec<Candidate> {
    let slices = || {
        slices
            .iter()
            .map(Borrow::borrow)
            .filter(|s: &&EndpointSlice| s.family == family && s.service == service.name)
    };
    let mut out = Vec::with_capacity(slices().map(|s| s.endpoints.len()).sum());
    for slice in slices() {
        for number in matching_ports(slice, port) {
            let endpoints = slice.endpoints.iter().filter(|e| Family::of(e.address) == family);
            out.extend(endpoints.map(|e| Candidate::new(e, number, node)));
        }
    }
    // Descending, so that of equal address and port the greatest comes first and stays (see `Candidate`).
    out.sort_unstable_by(|a, b| b.cmp(a));
    out.dedup_by_key(|c| (c.address, c.port));
    out.reverse();
    out
}

/// The numbers a Service port resolves to in a slice; numbers are never compared (S-11).
fn matching_ports<'a>(slice: &'a EndpointSlice, port: &'a ServicePort) -> impl Iterator<Item = u16> + 'a {
    slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol).map(|p| p.port)
}
