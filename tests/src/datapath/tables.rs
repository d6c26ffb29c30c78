//! Writing the tables, row by row, with the layouts of `lb-common` alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::{Array, HashMap, MapData};
use lb_common::address::{Ip4, Ip6};
use lb_common::byteorder::Be16;
use lb_common::layout::{
    Backend, BackendFlags, Bucket4, Bucket6, Class, Control, FlowEntry, FrontendKey, FrontendKind,
    FrontendValue, HAS_ENDPOINTS, MasqueradeAddresses, Policy, Publish, Service, ServiceVerdict,
    SourceRanges, slot_of_word,
};

use super::{BackendSpec, Datapath};

impl Datapath {
    /// Writes a Service whose only frontend is a cluster IP; its index is returned.
    ///
    /// # Errors
    /// When a table is full or the kernel refuses a store.
    pub fn service(
        &mut self,
        frontend: SocketAddr,
        protocol: u8,
        verdict: ServiceVerdict,
        backends: &[BackendSpec],
    ) -> Result<u32> {
        let service = self.empty_service();
        let indices = backends.iter().map(|spec| self.backend(service, spec)).collect::<Result<Vec<_>>>()?;
        self.publish(service, verdict, &indices)?;
        self.frontend(frontend, protocol, service, FrontendKind::ClusterIp)?;
        Ok(service)
    }

    /// The index of a Service of which nothing is written yet.
    pub fn empty_service(&mut self) -> u32 {
        self.services += 1;
        self.services - 1
    }

    /// Publishes a verdict and a new run of slots for the clients of a Service's cluster IP.
    ///
    /// # Errors
    /// When the kernel refuses the store.
    pub fn publish(&mut self, service: u32, verdict: ServiceVerdict, backends: &[u32]) -> Result<()> {
        self.publish_class(service, Class::Internal, verdict, backends)
    }

    /// Publishes a verdict and a new run of slots for a class of clients of a Service.
    ///
    /// # Errors
    /// When the kernel refuses the store.
    pub fn publish_class(
        &mut self,
        service: u32,
        class: Class,
        verdict: ServiceVerdict,
        backends: &[u32],
    ) -> Result<()> {
        let publish = Publish { base: self.slots, count: backends.len() as u32, verdict: verdict as u8 };
        for backend in backends {
            self.set_slot(self.slots, *backend)?;
            self.slots += 1;
        }
        self.set_service_word(service, class as usize, publish.encode())
    }

    /// Entries that the programs and the agent count for a Service, IPv4 and IPv6; for Service 0 all of them.
    ///
    /// # Errors
    /// When the kernel refuses the look-up.
    pub fn shares(&mut self, service: u32) -> Result<[u64; 2]> {
        Ok(self.array::<[u64; 2]>("SHARES")?.get(&service, 0)?)
    }

    /// Stores what [`Datapath::shares`] tells.
    ///
    /// # Errors
    /// When the kernel refuses the store.
    pub fn set_shares(&mut self, service: u32, entries: [u64; 2]) -> Result<()> {
        Ok(self.array::<[u64; 2]>("SHARES")?.set(service, entries, 0)?)
    }

    /// Says as the agent does that it counted so many seconds ago, and found so many Services with entries in each family.
    ///
    /// # Errors
    /// When the kernel refuses a store.
    pub fn counted(&mut self, seconds: u64, services: u32) -> Result<()> {
        let mut control = self.array::<u64>("CONTROL")?;
        // SAFETY: `clock_gettime` writes one structure, which is plain numbers.
        let now = unsafe {
            let mut now: libc::timespec = std::mem::zeroed();
            ensure!(libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) == 0, "clock_gettime");
            now.tv_sec as u64
        };
        control.set(Control::Counted as u32, now - seconds, 0)?;
        let services = u64::from(services);
        Ok(control.set(Control::Sharers as u32, services << 32 | services, 0)?)
    }

    /// Stores the policy of a Service.
    ///
    /// # Errors
    /// When the kernel refuses the store.
    pub fn policy(&mut self, service: u32, policy: Policy) -> Result<()> {
        self.set_service_word(service, Service::POLICY, policy.encode())
    }

    /// Stores a run of source ranges, network and prefix length each, for a Service (S-34).
    ///
    /// # Errors
    /// When the kernel refuses a store.
    pub fn source_ranges(&mut self, service: u32, ranges: &[(IpAddr, u32)]) -> Result<()> {
        let (first, count) = (self.source_ranges, ranges.len() as u32);
        for (network, prefix) in ranges {
            let (at, row) = (self.source_ranges, range_words(*network, *prefix));
            self.array::<[u64; 4]>("SOURCE_RANGES")?.set(at, row, 0)?;
            self.source_ranges += 1;
        }
        self.set_service_word(service, Service::SOURCE_RANGES, SourceRanges { first, count }.encode())
    }

    fn set_service_word(&mut self, service: u32, word: usize, value: u64) -> Result<()> {
        let mut table = self.array::<[u64; Service::WORDS]>("SERVICES")?;
        let mut row = table.get(&service, 0)?;
        row[word] = value;
        Ok(table.set(service, row, 0)?)
    }

    /// Writes a frontend of a Service. A cluster IP's address is marked as one; a node port's address is not used, see
    /// [`Datapath::node_address`].
    ///
    /// # Errors
    /// When a table is full or the kernel refuses a store.
    pub fn frontend(
        &mut self,
        frontend: SocketAddr,
        protocol: u8,
        service: u32,
        kind: FrontendKind,
    ) -> Result<()> {
        let port = Be16::new(frontend.port());
        let value = FrontendValue { service, kind }.encode();
        let node_port = kind == FrontendKind::NodePort;
        match frontend.ip() {
            IpAddr::V4(address) => {
                let address = Ip4::from(address);
                let key = if node_port {
                    FrontendKey::node_port(port, protocol)
                } else {
                    FrontendKey::service(address, port, protocol)
                };
                self.frontend4(&key, value)?;
                if kind == FrontendKind::ClusterIp {
                    self.frontend4(&FrontendKey::address(address), 0)?;
                }
            }
            IpAddr::V6(address) => {
                let address = Ip6::from(address);
                let key = if node_port {
                    FrontendKey::node_port(port, protocol)
                } else {
                    FrontendKey::service(address, port, protocol)
                };
                self.frontend6(&key, value)?;
                if kind == FrontendKind::ClusterIp {
                    self.frontend6(&FrontendKey::address(address), 0)?;
                }
            }
        }
        Ok(())
    }

    /// Marks a cluster IP as one that has an endpoint, or has none (S-70).
    ///
    /// # Errors
    /// When a table is full or the kernel refuses a store.
    pub fn has_endpoints(&mut self, address: IpAddr, has: bool) -> Result<()> {
        let value = if has { HAS_ENDPOINTS } else { 0 };
        match address {
            IpAddr::V4(address) => self.frontend4(&FrontendKey::address(Ip4::from(address)), value),
            IpAddr::V6(address) => self.frontend6(&FrontendKey::address(Ip6::from(address)), value),
        }
    }

    /// Marks an address as one that node ports are served at (S-35).
    ///
    /// # Errors
    /// When a table is full or the kernel refuses a store.
    pub fn node_address(&mut self, address: IpAddr) -> Result<()> {
        match address {
            IpAddr::V4(address) => self.frontend4(&FrontendKey::node_address(Ip4::from(address)), 0),
            IpAddr::V6(address) => self.frontend6(&FrontendKey::node_address(Ip6::from(address)), 0),
        }
    }

    /// Sets the addresses that flows get which leave by a device; device 0 stands for all others.
    ///
    /// # Errors
    /// When the kernel refuses the store.
    pub fn masquerade(&mut self, interface: u32, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> Result<()> {
        let octets4 = v4.unwrap_or(Ipv4Addr::UNSPECIFIED).octets();
        let octets6 = v6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets();
        let mut row = [0; size_of::<MasqueradeAddresses>()];
        row[..16].copy_from_slice(&octets6);
        row[16..20].copy_from_slice(&octets4);
        let map = self.ebpf.map_mut("MASQUERADE").context("map MASQUERADE")?;
        let mut map: HashMap<&mut MapData, u32, [u8; size_of::<MasqueradeAddresses>()]> = map.try_into()?;
        Ok(map.insert(interface, row, 0)?)
    }

    /// Takes the row of a device away, see [`Datapath::masquerade`].
    ///
    /// # Errors
    /// When there is none.
    pub fn no_masquerade(&mut self, interface: u32) -> Result<()> {
        let map = self.ebpf.map_mut("MASQUERADE").context("map MASQUERADE")?;
        let mut map: HashMap<&mut MapData, u32, [u8; size_of::<MasqueradeAddresses>()]> = map.try_into()?;
        Ok(map.remove(&interface)?)
    }

    /// Adds a Service range (S-23).
    ///
    /// # Errors
    /// When the kernel refuses a store.
    pub fn range(&mut self, network: IpAddr, prefix: u32) -> Result<()> {
        let row = self.ranges;
        self.array::<[u64; 4]>("SERVICE_RANGES")?.set(row, range_words(network, prefix), 0)?;
        self.ranges += 1;
        let ranges = u64::from(self.ranges);
        Ok(self.array::<u64>("CONTROL")?.set(Control::ServiceRanges as u32, ranges, 0)?)
    }

    /// Writes a backend row; its index is returned.
    ///
    /// # Errors
    /// When the kernel refuses the store.
    pub fn backend(&mut self, service: u32, spec: &BackendSpec) -> Result<u32> {
        let index = self.backends;
        self.backends += 1;
        self.set_backend(index, service, spec)?;
        Ok(index)
    }

    /// The index that the next backend gets.
    pub fn next_backend(&self) -> u32 {
        self.backends
    }

    /// Overwrites a backend row.
    ///
    /// # Errors
    /// When the kernel refuses the store.
    pub fn set_backend(&mut self, index: u32, service: u32, spec: &BackendSpec) -> Result<()> {
        let port = Be16::new(spec.endpoint.port());
        let flags = spec.flags | BackendFlags::IN_USE;
        let (interface, mac) = (spec.interface, spec.mac);
        match spec.endpoint.ip() {
            IpAddr::V4(address) => {
                let row = Backend { address: Ip4::from(address), port, flags, service, interface, mac };
                self.array::<[u64; 4]>("BACKENDS4")?.set(index, row.encode4(), 0)?;
            }
            IpAddr::V6(address) => {
                let row = Backend { address: Ip6::from(address), port, flags, service, interface, mac };
                self.array::<[u64; 6]>("BACKENDS6")?.set(index, row.encode6(), 0)?;
            }
        }
        Ok(())
    }

    /// Moves the epoch on: what the flow cache holds is void.
    ///
    /// # Errors
    /// When the kernel refuses the store.
    pub fn advance_epoch(&mut self) -> Result<()> {
        let mut control = self.array::<u64>("CONTROL")?;
        let epoch = control.get(&(Control::Epoch as u32), 0)?;
        Ok(control.set(Control::Epoch as u32, epoch + 1, 0)?)
    }

    /// Lets every entry of the flow cache forget that its flow carried a complete checksum.
    ///
    /// # Errors
    /// When the kernel refuses a store.
    pub fn forget_complete_checksums(&mut self) -> Result<()> {
        // The flags are the last byte of an entry, two entries to a set.
        let mut four = self.array::<[[u8; 64]; 2]>("FLOWS4")?;
        for set in 0..four.len() {
            let mut entries = four.get(&set, 0)?;
            entries.iter_mut().for_each(|entry| entry[63] &= !FlowEntry::<Ip4>::COMPLETE_CHECKSUM);
            four.set(set, entries, 0)?;
        }
        let mut six = self.array::<[[u8; 112]; 2]>("FLOWS6")?;
        for set in 0..six.len() {
            let mut entries = six.get(&set, 0)?;
            entries.iter_mut().for_each(|entry| entry[111] &= !FlowEntry::<Ip6>::COMPLETE_CHECKSUM);
            six.set(set, entries, 0)?;
        }
        Ok(())
    }

    /// Empties the tables of the service side, so that rows are given out from the first one on again.
    ///
    /// # Errors
    /// When the kernel refuses a store.
    pub fn clear_services(&mut self) -> Result<()> {
        for (v6, bucket) in std::mem::take(&mut self.buckets) {
            if v6 {
                self.array::<[u64; Bucket6::WORDS]>("FRONTENDS6")?.set(bucket, [0; Bucket6::WORDS], 0)?;
            } else {
                self.array::<[u64; Bucket4::WORDS]>("FRONTENDS4")?.set(bucket, [0; Bucket4::WORDS], 0)?;
            }
        }
        for service in 1..self.services {
            self.array::<[u64; Service::WORDS]>("SERVICES")?.set(service, [0; Service::WORDS], 0)?;
        }
        for backend in 1..self.backends {
            self.array::<[u64; 4]>("BACKENDS4")?.set(backend, [0; 4], 0)?;
            self.array::<[u64; 6]>("BACKENDS6")?.set(backend, [0; 6], 0)?;
        }
        self.array::<u64>("CONTROL")?.set(Control::ServiceRanges as u32, 0, 0)?;
        (self.services, self.backends) = (1, 1);
        (self.slots, self.ranges, self.source_ranges) = (0, 0, 0);
        self.advance_epoch()
    }

    fn set_slot(&mut self, slot: u32, backend: u32) -> Result<()> {
        let (word, shift) = slot_of_word(slot);
        let mut slots = self.array::<u64>("SLOTS")?;
        let old = slots.get(&word, 0)?;
        let new = old & !(0xffff_ffff << shift) | u64::from(backend) << shift;
        Ok(slots.set(word, new, 0)?)
    }

    fn frontend4(&mut self, key: &FrontendKey<Ip4>, value: u32) -> Result<()> {
        let (first, second) = key.buckets(self.frontend_mask);
        let table = self.array::<[u64; Bucket4::WORDS]>("FRONTENDS4")?;
        let taken = |word: u64| word != 0 && word != key.word();
        let row = |bucket| table.get(&bucket, 0);
        let others =
            |row: &[u64; Bucket4::WORDS]| row[..Bucket4::ENTRIES].iter().filter(|word| taken(**word)).count();
        // The first one as long as it has room for those that come after; every key has two.
        let known = row(second)?[..Bucket4::ENTRIES].contains(&key.word());
        let there = others(&row(first)?);
        let elsewhere = known || (there > 2 && others(&row(second)?) < there);
        let bucket = if elsewhere { second } else { first };
        let mut row = table.get(&bucket, 0)?;
        self.buckets.push((false, bucket));
        let mut table = self.array::<[u64; Bucket4::WORDS]>("FRONTENDS4")?;
        let entry = row[..Bucket4::ENTRIES].iter().position(|word| !taken(*word)).context("bucket full")?;
        let (word, shift) = Bucket4::value_position(entry);
        row[word] = row[word] & !(0xffff_ffff << shift) | u64::from(value) << shift;
        row[entry] = key.word();
        Ok(table.set(bucket, row, 0)?)
    }

    fn frontend6(&mut self, key: &FrontendKey<Ip6>, value: u32) -> Result<()> {
        let (_, bucket) = key.buckets(self.frontend_mask);
        self.buckets.push((true, bucket));
        let mut table = self.array::<[u64; Bucket6::WORDS]>("FRONTENDS6")?;
        let mut row = table.get(&bucket, 0)?;
        let mine = |at: &usize| {
            let same = row[*at..at + 2] == [key.address.first(), key.address.last()];
            row[at + 2] == 0 || (same && row[at + 2] >> 32 == Bucket6::publish(key, 0) >> 32)
        };
        let at = (0..Bucket6::ENTRIES).map(Bucket6::position).find(mine).context("bucket full")?;
        ensure!(at + 2 < Bucket6::WORDS);
        row[at] = key.address.first();
        row[at + 1] = key.address.last();
        row[at + 2] = Bucket6::publish(key, value);
        Ok(table.set(bucket, row, 0)?)
    }

    pub(super) fn array<T: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, T>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("map {name}"))?;
        Ok(map.try_into()?)
    }
}

/// A range as its table holds it: address and mask, two words each, IPv4 mapped (RFC 4291 2.5.5.2).
fn range_words(network: IpAddr, prefix: u32) -> [u64; 4] {
    let (network, prefix) = match network {
        IpAddr::V4(network) => (network.to_ipv6_mapped(), prefix + 96),
        IpAddr::V6(network) => (network, prefix),
    };
    let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
    let words = |bits: u128| {
        let address = Ip6::from(Ipv6Addr::from_bits(bits));
        [address.first(), address.last()]
    };
    let ([a, b], [c, d]) = (words(network.to_bits() & mask), words(mask));
    [a, b, c, d]
}
