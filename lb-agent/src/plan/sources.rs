//! Which sources load balancer VIPs are for (S-34, S-14).

use super::types::{Frontend, FrontendKind};
use crate::model::{Cidr, Family, Service};

/// The source ranges that hold in one family, as few as say the same; empty means that everybody may connect.
///
/// So it is without VIPs, since nothing else is restricted; when one range has every address of the family; and when
/// every range is of the other family, which restricts that one only (S-14 trap 1).
pub(super) fn ranges(service: &Service, external: &[Frontend], family: Family) -> Vec<Cidr> {
    if !external.iter().any(|frontend| frontend.kind == FrontendKind::LoadBalancer) {
        return Vec::new();
    }
    let mut given: Vec<Cidr> =
        service.source_ranges.iter().filter(|range| range.family() == family).copied().collect();
    // By address, the widest first: what covers a range, or is the other half of one, comes right before it.
    given.sort_unstable_by_key(|range| (range.address(), range.prefix()));
    let mut out: Vec<Cidr> = Vec::with_capacity(given.len());
    for range in given {
        if out.last().is_some_and(|before| before.covers(range)) {
            continue;
        }
        let mut range = range;
        while let Some(whole) = out.last().and_then(|before| before.join(range)) {
            out.pop();
            range = whole;
        }
        out.push(range);
    }
    if out.iter().any(|range| range.prefix() == 0) { Vec::new() } else { out }
}
