//! Adding: rows, endpoints, lists and frontends that a plan has and the tables have not.

use std::net::IpAddr;

use lb_common::layout::{BackendFlags, Class, Policy, Service, ServiceName, Table};

use super::backend::{BackendRow, CLASS_FLAGS};
use super::port::Port;
use super::{Applier, ApplyError};
use crate::dataplane::memory::{StoreError, TableMemory};
use crate::model::Family;
use crate::plan::{EndpointPlan, ServicePlan, ServicePortKey, ServicePortPlan, Verdict};

/// What [`Applier::grow`] met.
pub(super) enum Grown {
    /// The Service was not in the tables: nothing of it can be too much.
    New,
    /// It was.
    Changed,
}

impl<M: TableMemory> Applier<M> {
    /// Adds what the plan has, and switches every port of it over: endpoints, then lists, then policies. Frontends follow
    /// with [`Applier::claim_frontends`] when every plan of the batch has come this far. Also returns how many ports have.
    pub(super) fn grow(&mut self, plan: &ServicePlan) -> (usize, Result<Grown, ApplyError>) {
        let is_new = !self.ports.has(&plan.service);
        if !is_new {
            self.ports.set_created(&plan.service, plan.created);
        }
        self.closed.remove(&plan.service);
        self.by_chance.remove(&plan.service);
        for (done, port) in plan.ports.iter().enumerate() {
            // The first port of a new Service need not be looked for.
            let known = if is_new && done == 0 { None } else { self.service_index(&port.key) };
            if let Err(error) = self.grow_port(plan, port, known) {
                return (done, Err(error));
            }
        }
        (plan.ports.len(), Ok(if is_new { Grown::New } else { Grown::Changed }))
    }

    fn grow_port(
        &mut self,
        plan: &ServicePlan,
        port: &ServicePortPlan,
        known: Option<u32>,
    ) -> Result<(), ApplyError> {
        let index = match known {
            Some(index) => index,
            None => self.add_port(plan, port)?,
        };
        let rows = self.grow_backends(index, port)?;
        self.before_publishing(index, port)?;
        self.publish(index, port, &rows)?;
        self.sync_sources(index, port)?;
        Ok(self.sync_policy(index, port)?)
    }

    /// A row for a port that has none, with its name written.
    fn add_port(&mut self, plan: &ServicePlan, port: &ServicePortPlan) -> Result<u32, ApplyError> {
        let name = encode_name(&port.key)?;
        let (index, reused) = self.writer.allocate_service()?;
        if let Err(error) = begin_row(&self.writer.memory, index, &name) {
            self.writer.services.give_back(index);
            return Err(error.into());
        }
        if reused {
            self.report.reused_services.push(index);
        }
        self.ports.insert(index, Port::new(port.key.clone(), plan.created));
        Ok(index)
    }

    /// Makes sure that every endpoint of the plan has a row, and returns the rows in the plan's order. Rows that
    /// the plan does not have, and flags that go, are left for [`Applier::shrink`].
    fn grow_backends(&mut self, index: u32, plan: &ServicePortPlan) -> Result<Vec<u32>, ApplyError> {
        let mut rows = Vec::with_capacity(plan.endpoints.len());
        let mut added = Vec::new();
        let result = self.find_or_add_backends(index, plan, &mut rows, &mut added);
        let Self { ports, writer, .. } = self;
        if let Some(port) = ports.get_mut(index) {
            port.add_backends(&writer.memory, &added);
        }
        result.map(|()| rows)
    }

    fn find_or_add_backends(
        &mut self,
        index: u32,
        plan: &ServicePortPlan,
        rows: &mut Vec<u32>,
        added: &mut Vec<u32>,
    ) -> Result<(), ApplyError> {
        let family = plan.key.family;
        let mut at = 0;
        let mut before = None;
        for (endpoint, lasting) in plan.endpoints.iter().zip(lasting_flags(plan)) {
            let target = (endpoint.address, endpoint.port);
            let found = match before {
                Some((same, row)) if same == target => Some(row),
                _ => self.advance(index, &mut at, target),
            };
            let row = match found {
                Some(row) => {
                    let now = BackendRow::load(&self.writer.memory, family, row).flags;
                    if lasting & !now != 0 {
                        let kept = now & (CLASS_FLAGS | BackendFlags::SERVING);
                        self.sync_endpoint(index, row, endpoint, lasting | kept)?;
                    }
                    row
                }
                None => {
                    let row = self.add_backend(index, family, endpoint, lasting)?;
                    added.push(row);
                    row
                }
            };
            rows.push(row);
            before = Some((target, row));
        }
        Ok(())
    }

    /// Moves on in the ordered backends of a port until `target`; its row when it is there.
    pub(super) fn advance(&self, index: u32, at: &mut usize, target: (IpAddr, u16)) -> Option<u32> {
        let port = self.port(index)?;
        while let Some(row) = port.backends.get(*at) {
            let found = port.target(&self.writer.memory, *row);
            if found >= target {
                return (found == target).then_some(*row);
            }
            *at += 1;
        }
        None
    }

    fn add_backend(
        &mut self,
        index: u32,
        family: Family,
        endpoint: &EndpointPlan,
        lasting: u16,
    ) -> Result<u32, ApplyError> {
        let EndpointPlan { address, port, local, .. } = *endpoint;
        let (row, reused) = self.writer.allocate_backend(family)?;
        let content = self.backend_row(index, (address, port), lasting, local);
        if let Err(error) = content.write_new(&self.writer.memory, row) {
            self.writer.backends(family).give_back(row);
            return Err(error.into());
        }
        if reused {
            self.report.reused_backends.push((family, row));
        }
        self.registry.add(&self.writer.memory, address, row);
        self.registry.set_local(family, row, local);
        Ok(row)
    }

    pub(super) fn sync_endpoint(
        &mut self,
        index: u32,
        row: u32,
        endpoint: &EndpointPlan,
        lasting: u16,
    ) -> Result<(), StoreError> {
        let family = Family::of(endpoint.address);
        self.registry.set_local(family, row, endpoint.local);
        self.sync_backend(family, row, index, (endpoint.address, endpoint.port), lasting)
    }
}

/// The flags of each endpoint that the plan decides: that it serves, and the classes that list it.
pub(super) fn lasting_flags(plan: &ServicePortPlan) -> Vec<u16> {
    let serving = |endpoint: &EndpointPlan| if endpoint.serving { BackendFlags::SERVING } else { 0 };
    let mut flags: Vec<u16> = plan.endpoints.iter().map(serving).collect();
    for class in Class::ALL {
        if let Some(Verdict::Balance(chosen)) = plan.verdict(class) {
            for index in chosen {
                if let Some(flags) = flags.get_mut(*index as usize) {
                    *flags |= class.backend_flag();
                }
            }
        }
    }
    flags
}

fn encode_name(key: &ServicePortKey) -> Result<[u8; ServiceName::BYTES], ApplyError> {
    let name = ServiceName {
        namespace: &key.service.namespace,
        name: &key.service.name,
        port_name: &key.port_name,
        protocol: key.protocol.number(),
        v6: key.family == Family::V6,
    };
    name.encode().ok_or_else(|| ApplyError::NameTooLong(key.to_string()))
}

/// Gives a row that nothing leads to its next generation, and its name: word 0, without which it is none, last. Words
/// after the name's end are left as they are.
fn begin_row(
    memory: &impl TableMemory,
    index: u32,
    name: &[u8; ServiceName::BYTES],
) -> Result<(), StoreError> {
    let before = Policy::decode(memory.load(Table::Services, index, Service::POLICY));
    let generation = before.generation().wrapping_add(1) << Policy::GENERATION_SHIFT;
    let policy = Policy { affinity_timeout: 0, flags: generation };
    memory.store(Table::Services, index, Service::POLICY, policy.encode())?;
    let length = 8 + name[2..5].iter().map(|length| usize::from(*length)).sum::<usize>();
    let (words, _) = name.as_chunks::<8>();
    for (word, bytes) in words.iter().enumerate().take(length.div_ceil(8)).skip(1) {
        memory.store(Table::Names, index, word, u64::from_ne_bytes(*bytes))?;
    }
    memory.store(Table::Names, index, 0, u64::from_ne_bytes(words[0]))
}
