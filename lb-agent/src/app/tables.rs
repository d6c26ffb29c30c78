//! The tables and everything that is written into them: plans from one side, ways from the other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, warn};

use super::endpoints::Endpoints;
use super::sockets::StaleSockets;
use crate::apply::{Applier, ApplyError, Conflict, NodeAddresses, Report, WayKind};
use crate::dataplane::mapped::MappedMemory;
use crate::dataplane::{Counters, Datapath};
use crate::health::{Check, Health};
use crate::index::{ApplyFailure, Failed, PlanSink};
use crate::k8s::{Report as Event, Reporter};
use crate::model::ObjectName;
use crate::net::{Affected, Finding, Mirror, NodeAddressing, way_to};
use crate::plan::{PlanChange, ServicePlan};

/// A pod of this node whose neighbour entry is missing: somebody has to ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Question {
    pub(super) interface: u32,
    pub(super) address: IpAddr,
}

/// State behind the lock.
pub(super) struct Tables {
    applier: Applier<Arc<MappedMemory>>,
    endpoints: Endpoints,
    pub(super) mirror: Mirror,
    /// Where questions go; `None` in forwarding mode `stack`, which needs no ways.
    questions: Option<UnboundedSender<Question>>,
}

/// Shared by the task that applies plans and the one that follows devices.
#[derive(Clone)]
pub(super) struct SharedTables(Arc<Mutex<Tables>>);

impl SharedTables {
    pub(super) fn new(
        applier: Applier<Arc<MappedMemory>>,
        questions: Option<UnboundedSender<Question>>,
    ) -> Self {
        let tables =
            Tables { applier, endpoints: Endpoints::default(), mirror: Mirror::default(), questions };
        Self(Arc::new(Mutex::new(tables)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Tables> {
        // A panic in between leaves tables that the next change repairs, as it does after a crash.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    pub(super) fn applier(&mut self) -> &mut Applier<Arc<MappedMemory>> {
        &mut self.applier
    }

    /// Stores at which addresses node ports are served.
    pub(super) fn set_node_addresses(&mut self, now: &NodeAddressing) -> Result<(), ApplyError> {
        self.applier.set_node_addresses(&NodeAddresses {
            local: now.local.iter().copied().collect(),
            node_ports: now.node_ports.iter().copied().collect(),
        })
    }

    fn keeps_ways(&self) -> bool {
        self.questions.is_some()
    }

    /// Replaces the ways of the agent before by what is known now of the addresses in the tables.
    pub(super) fn reset_ways(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        let mut ways = HashMap::new();
        if self.keeps_ways() {
            for address in addresses {
                match way_to(&self.mirror, address) {
                    Finding::Way(way) => {
                        ways.insert(address, way);
                    }
                    Finding::Unresolved(interface) => self.ask(Question { interface, address }),
                    Finding::Stack => {}
                }
            }
        }
        if let Err(error) = self.applier.set_ways(ways) {
            warn!(%error, "ways to endpoints are not up to date; tried again with the next change");
        }
    }

    /// Finds the ways of the affected endpoints anew.
    pub(super) fn refresh_ways(&mut self, affected: &BTreeSet<Affected>) {
        if !self.keeps_ways() || affected.is_empty() {
            return;
        }
        let addresses: Vec<IpAddr> = if affected.contains(&Affected::All) {
            self.endpoints.addresses().collect()
        } else {
            let one = |affected: &Affected| match affected {
                Affected::Address(address) if self.endpoints.contains(*address) => Some(*address),
                _ => None,
            };
            affected.iter().filter_map(one).collect()
        };
        for address in addresses {
            self.refresh_way(address);
        }
    }

    fn refresh_way(&mut self, address: IpAddr) {
        let way = match way_to(&self.mirror, address) {
            Finding::Way(way) => Some(way),
            Finding::Unresolved(interface) => {
                self.ask(Question { interface, address });
                None
            }
            Finding::Stack => None,
        };
        if let Err(error) = self.applier.set_way(address, way) {
            debug!(%address, %error, "way not stored yet");
        }
    }

    fn ask(&self, question: Question) {
        if let Some(questions) = &self.questions {
            // When nobody listens, the agent is about to end.
            let _ = questions.send(question);
        }
    }

    /// Endpoints on this node that no way is known to.
    pub(super) fn unresolved(&self) -> Vec<Question> {
        if !self.keeps_ways() {
            return Vec::new();
        }
        let unresolved = |address| match way_to(&self.mirror, address) {
            Finding::Unresolved(interface) => Some(Question { interface, address }),
            _ => None,
        };
        self.endpoints.addresses().filter_map(unresolved).collect()
    }

    /// Endpoints reached past a bridge: it sees none of their packets and would forget behind which port they are.
    pub(super) fn bridged(&self) -> Vec<Question> {
        if !self.keeps_ways() {
            return Vec::new();
        }
        let bridged = |address| match way_to(&self.mirror, address) {
            Finding::Way(way) if way.kind == WayKind::Local => {
                self.mirror.link(way.interface)?.master.map(|interface| Question { interface, address })
            }
            _ => None,
        };
        self.endpoints.addresses().filter_map(bridged).collect()
    }

    /// True when the neighbour's MAC address is known and only the bridge has forgotten its port.
    pub(super) fn knows_mac(&self, question: Question) -> bool {
        let neighbour = self.mirror.neighbour(question.interface, question.address);
        neighbour.is_some_and(|neighbour| neighbour.mac.is_some())
    }

    fn take(&mut self, change: PlanChange) {
        // Ways first: a backend row is then written once, with its way.
        if self.keeps_ways() {
            for address in self.endpoints.take_in(&change) {
                self.refresh_way(address);
            }
        }
        self.applier.take(change);
    }

    fn commit(&mut self, full: bool) -> Report {
        let report = self.applier.commit(full);
        for address in self.endpoints.end() {
            if let Err(error) = self.applier.set_way(address, None) {
                debug!(%address, %error, "way not removed yet");
            }
        }
        report
    }
}

/// Where the engine's plans go.
pub(super) struct Sink {
    pub(super) tables: SharedTables,
    pub(super) datapath: Arc<Datapath>,
    pub(super) sockets: StaleSockets,
    pub(super) health: Health,
    pub(super) reporter: Reporter,
    /// Contested frontends that were told: frontend and loser, with who has it.
    pub(super) contested: BTreeMap<(String, ObjectName), ObjectName>,
}

impl PlanSink for Sink {
    fn apply(
        &mut self,
        full: bool,
        changes: &mut dyn Iterator<Item = PlanChange>,
    ) -> Result<(), ApplyFailure> {
        self.health.applying();
        let mut services = Vec::new();
        let (report, conflicts) = {
            let mut tables = self.tables.lock();
            tables.endpoints.begin(full);
            for change in changes {
                services.push(change.service.clone());
                self.health.set(&change.service, change.plan.as_ref().and_then(check_of));
                self.sockets.take_in(&change);
                tables.take(change);
            }
            (tables.commit(full), tables.applier.conflicts())
        };
        if full {
            let listed = services.iter().collect();
            self.health.retain(&listed);
            self.sockets.retain(&listed);
        }
        self.tell_conflicts(&conflicts);
        if let Err(error) = self.reset_counters(&report) {
            warn!(%error, "counters of reused rows go on from the old values");
        }
        self.health.applied(&services, &report.failures.iter().map(|failure| &failure.service).collect());
        let Some(first) = report.failures.first() else {
            self.sockets.applied();
            return Ok(());
        };
        let reason = format!("{}: {}", first.service, first.error);
        let failed = report.failures.iter().map(|failure| failure.service.clone()).collect();
        Err(ApplyFailure { failed: Failed::Services(failed), reason })
    }
}

/// A contested frontend, for people.
fn frontend_name(conflict: &Conflict) -> String {
    let (key, protocol) = (&conflict.frontend, conflict.owner.protocol);
    if key.address.is_unspecified() {
        return format!("node port {} {protocol}", key.port);
    }
    format!("{} {protocol}", SocketAddr::new(key.address, key.port))
}

fn check_of(plan: &ServicePlan) -> Option<Check> {
    plan.health_check.map(|check| Check {
        created: plan.created,
        port: check.node_port,
        local_v4: check.local_v4,
        local_v6: check.local_v6,
    })
}

impl Sink {
    /// Tells who does not get a frontend because somebody else has it (S-83), once for each pair.
    fn tell_conflicts(&mut self, conflicts: &[Conflict]) {
        if conflicts.is_empty() && self.contested.is_empty() {
            return;
        }
        let mut now = BTreeMap::new();
        for conflict in conflicts {
            let (frontend, owner) = (frontend_name(conflict), &conflict.owner.service);
            for loser in conflict.losers.iter().map(|loser| &loser.service).filter(|loser| *loser != owner) {
                let key = (frontend.clone(), loser.clone());
                if self.contested.get(&key) != Some(owner) {
                    warn!(service = %loser, frontend, %owner, "frontend contested: another Service has it");
                    self.reporter.report(Event {
                        service: loser.clone(),
                        reason: "FrontendContested",
                        action: "ProgramService",
                        note: format!(
                            "{frontend} belongs to Service {owner}; this Service is not reached there"
                        ),
                    });
                }
                now.insert(key, owner.clone());
            }
        }
        self.contested = now;
    }

    fn reset_counters(&self, report: &Report) -> crate::dataplane::Result<()> {
        if report.reused_services.is_empty() && report.reused_backends.is_empty() {
            return Ok(());
        }
        let counters = Counters::new(self.datapath.maps())?;
        for index in &report.reused_services {
            counters.reset_service(*index)?;
        }
        for (family, index) in &report.reused_backends {
            counters.reset_backend(*family == crate::model::Family::V6, *index)?;
        }
        Ok(())
    }
}
