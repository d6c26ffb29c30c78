//! How large the maps are: from what the operator thinks in to elements of each map.

use lb_common::layout::{Bucket4, Control, Table};
use lb_common::reason::Reason;

use super::error::{Error, Result};

/// Sizes as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Service ports, counted once for each address family.
    pub services: u32,
    /// Endpoints of Service ports, each family on its own.
    pub endpoints: u32,
    /// Connections, each family on its own.
    pub connections: u32,
    /// Sets of two flows in the flow cache, for each CPU and family; a power of two.
    pub flow_cache_sets: u32,
    /// Slots of the lists that connections choose from; `None` for as many as lists without Maglev tables need.
    pub slots: Option<u32>,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            services: 16_384,
            endpoints: 65_536,
            connections: 262_144,
            flow_cache_sets: 4_096,
            slots: None,
        }
    }
}

/// Slots for each endpoint: an update needs room for the old run and the new one, and runs leave gaps. Traffic classes
/// with the same list share a run; where a policy is Local, the endpoints on this node are in a second one.
const SLOTS_PER_ENDPOINT: u32 = 4;

/// Slots for each Service port where Maglev tables are the rule: those of the smallest one, of which a quarter stays free.
const SLOTS_PER_TABLE: u32 = 1_400;

/// Frontend entries for each Service port: its cluster IP, that address by itself (S-23), a node port, and an external IP
/// or load balancer address. Those with more of these use what Services without them leave; entries of node addresses
/// are few.
const FRONTENDS_PER_SERVICE: u32 = 4;

impl Sizes {
    /// Largest number of rows of a map.
    const MAX: u32 = 1 << 22;

    /// Largest number of slots: 256 MiB of them.
    const MAX_SLOTS: u32 = 1 << 26;

    /// Checks what the layout demands.
    ///
    /// # Errors
    /// [`Error::Size`] that names the flag and what it may be.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("--max-services", self.services, 16),
            ("--max-endpoints", self.endpoints, 16),
            ("--max-connections", self.connections, 1024),
            ("--flow-cache-sets", self.flow_cache_sets, 1),
        ];
        for (flag, value, least) in sizes {
            if !(least..=Self::MAX).contains(&value) {
                return Err(Error::Size(format!(
                    "{flag} is {value}; it must lie in {least}..={}",
                    Self::MAX
                )));
            }
        }
        let least = self.least_slots();
        if let Some(slots) = self.slots
            && !(least..=Self::MAX_SLOTS).contains(&slots)
        {
            let most = Self::MAX_SLOTS;
            return Err(Error::Size(format!("--max-slots is {slots}; it must lie in {least}..={most}")));
        }
        if !self.flow_cache_sets.is_power_of_two() {
            return Err(Error::Size(format!(
                "--flow-cache-sets is {}; it must be a power of two",
                self.flow_cache_sets
            )));
        }
        Ok(())
    }

    /// Elements of a table of the service side.
    pub fn rows(&self, table: Table) -> u32 {
        match table {
            Table::Control => Control::WORDS,
            Table::Frontends4 | Table::Frontends6 => self.frontend_buckets(),
            // Row 0 is never used.
            Table::Services | Table::Names | Table::Shares => self.services + 1,
            // Two slots to a word.
            Table::Slots => self.slots.unwrap_or_else(|| self.least_slots()).div_ceil(2),
            Table::Backends4 | Table::Backends6 => self.endpoints + 1,
            Table::ServiceRanges => Control::MAX_SERVICE_RANGES,
            // Shared by all Service ports: few restrict their sources, and few to more than a handful.
            Table::SourceRanges => self.services.next_power_of_two(),
            Table::Generations => Control::GENERATIONS,
        }
    }

    /// Slots that lists without Maglev tables need.
    const fn least_slots(&self) -> u32 {
        self.endpoints * SLOTS_PER_ENDPOINT
    }

    /// Slots for Maglev tables of most Services besides, as far as there may be so many.
    pub const fn slots_for_maglev(&self) -> u32 {
        let tables = self.services.saturating_mul(SLOTS_PER_TABLE);
        let all = self.least_slots().saturating_add(tables);
        if all < Self::MAX_SLOTS { all } else { Self::MAX_SLOTS }
    }

    /// Entries for every Service port in each family, four fifths full at most, which two-choice placement into buckets
    /// of five reaches.
    fn frontend_buckets(&self) -> u32 {
        let entries = self.services * FRONTENDS_PER_SERVICE;
        (entries * 5 / 4).div_ceil(Bucket4::ENTRIES as u32).next_power_of_two()
    }

    /// Clients of Services with session affinity that are remembered, each family on its own: one for every four
    /// connections.
    pub const fn affinities(&self) -> u32 {
        self.connections / 4
    }

    /// Sockets that are remembered in each of the tables about them: one for every four connections, and no fewer than
    /// a table that makes room by evicting needs to work well.
    pub fn sockets(&self) -> u32 {
        (self.connections / 4).max(1024)
    }

    /// Elements of the map of counters by reason.
    pub const REASONS: u32 = Reason::COUNTERS;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_has_as_many_buckets_as_services() {
        let sizes = Sizes::default();
        sizes.check().unwrap();
        assert_eq!(sizes.rows(Table::Frontends4), 16_384);
        assert_eq!(sizes.rows(Table::Slots) * 2, 4 * 65_536);
    }

    #[test]
    fn slots_are_as_many_as_asked_for() {
        let sizes = Sizes { slots: Some(1_000_001), ..Sizes::default() };
        sizes.check().unwrap();
        assert_eq!(sizes.rows(Table::Slots), 500_001);
        assert_eq!(Sizes::default().slots_for_maglev(), 4 * 65_536 + 16_384 * 1_400);
        let few = Sizes { slots: Some(4 * 65_536 - 1), ..Sizes::default() };
        assert!(few.check().unwrap_err().to_string().contains("--max-slots"));
        let many = Sizes { services: Sizes::MAX, ..Sizes::default() }.slots_for_maglev();
        Sizes { slots: Some(many), ..Sizes::default() }.check().unwrap();
    }

    #[test]
    fn buckets_hold_the_frontends_of_every_service() {
        for services in [16, 100, 16_384, 50_000, 1 << 20, Sizes::MAX] {
            let buckets = Sizes { services, ..Sizes::default() }.rows(Table::Frontends6);
            assert!(buckets.is_power_of_two());
            assert!(u64::from(buckets) * 5 * 4 >= u64::from(services) * 4 * 5, "{services}: {buckets}");
            assert!(buckets <= Sizes::MAX);
        }
    }

    #[test]
    fn what_the_layout_cannot_hold_is_refused_by_the_name_of_its_flag() {
        let wrong = Sizes { flow_cache_sets: 3000, ..Sizes::default() };
        assert!(wrong.check().unwrap_err().to_string().contains("--flow-cache-sets"));
        let wrong = Sizes { services: 0, ..Sizes::default() };
        assert!(wrong.check().unwrap_err().to_string().contains("--max-services"));
    }
}
