//! Writing the tables, row by row, with the layouts of `lb-common` alone.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::{Array, MapData};
use lb_common::address::{Ip4, Ip6};
use lb_common::byteorder::Be16;
use lb_common::layout::{
    Backend, BackendFlags, Bucket4, Bucket6, Control, FlowEntry, FrontendKey, Publish, Service,
    ServiceVerdict, slot_of_word,
};

use super::{BUCKETS, BackendSpec, Datapath};

impl Datapath {
    /// Writes a Service with one frontend; its index is returned.
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
        let service = self.services;
        self.services += 1;
        let indices = backends.iter().map(|spec| self.backend(service, spec)).collect::<Result<Vec<_>>>()?;
        self.publish(service, verdict, &indices)?;
        let port = Be16::new(frontend.port());
        match frontend.ip() {
            IpAddr::V4(address) => {
                self.frontend4(&FrontendKey::service(Ip4::from(address), port, protocol), service)?;
                self.frontend4(&FrontendKey::address(Ip4::from(address)), 0)?;
            }
            IpAddr::V6(address) => {
                self.frontend6(&FrontendKey::service(Ip6::from(address), port, protocol), service)?;
                self.frontend6(&FrontendKey::address(Ip6::from(address)), 0)?;
            }
        }
        Ok(service)
    }

    /// Publishes a verdict and a new run of slots for a Service.
    ///
    /// # Errors
    /// When the kernel refuses the store.
    pub fn publish(&mut self, service: u32, verdict: ServiceVerdict, backends: &[u32]) -> Result<()> {
        let publish = Publish { base: self.slots, count: backends.len() as u32, verdict: verdict as u8 };
        for backend in backends {
            self.set_slot(self.slots, *backend)?;
            self.slots += 1;
        }
        Ok(self.array::<[u64; Service::WORDS]>("SERVICES")?.set(
            service,
            [publish.encode(), 0, 0, 0, 0, 0, 0, 0],
            0,
        )?)
    }

    /// Adds a Service range (S-23).
    ///
    /// # Errors
    /// When the kernel refuses a store.
    pub fn range(&mut self, network: IpAddr, prefix: u32) -> Result<()> {
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
        let row = self.ranges;
        self.array::<[u64; 4]>("SERVICE_RANGES")?.set(row, [a, b, c, d], 0)?;
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

    fn set_slot(&mut self, slot: u32, backend: u32) -> Result<()> {
        let (word, shift) = slot_of_word(slot);
        let mut slots = self.array::<u64>("SLOTS")?;
        let old = slots.get(&word, 0)?;
        let new = old & !(0xffff_ffff << shift) | u64::from(backend) << shift;
        Ok(slots.set(word, new, 0)?)
    }

    fn frontend4(&mut self, key: &FrontendKey<Ip4>, service: u32) -> Result<()> {
        let (bucket, _) = key.buckets(BUCKETS - 1);
        let mut table = self.array::<[u64; Bucket4::WORDS]>("FRONTENDS4")?;
        let mut row = table.get(&bucket, 0)?;
        let taken = |word: u64| word != 0 && word != key.word();
        let entry = row[..Bucket4::ENTRIES].iter().position(|word| !taken(*word)).context("bucket full")?;
        let (word, shift) = Bucket4::value_position(entry);
        row[word] = row[word] & !(0xffff_ffff << shift) | u64::from(service) << shift;
        row[entry] = key.word();
        Ok(table.set(bucket, row, 0)?)
    }

    fn frontend6(&mut self, key: &FrontendKey<Ip6>, service: u32) -> Result<()> {
        let (_, bucket) = key.buckets(BUCKETS - 1);
        let mut table = self.array::<[u64; Bucket6::WORDS]>("FRONTENDS6")?;
        let mut row = table.get(&bucket, 0)?;
        let free = (0..Bucket6::ENTRIES).map(Bucket6::position).find(|at| row[at + 2] == 0);
        let at = free.context("bucket full")?;
        ensure!(at + 2 < Bucket6::WORDS);
        row[at] = key.address.first();
        row[at + 1] = key.address.last();
        row[at + 2] = Bucket6::publish(key, service);
        Ok(table.set(bucket, row, 0)?)
    }

    fn array<T: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, T>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("map {name}"))?;
        Ok(map.try_into()?)
    }
}
