//! Everything that is told to who asks.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use lb_common::layout::Class;
use tokio::sync::watch;

use super::catalogue as list;
use super::histogram::Snapshot;
use super::process::Process;
use super::services::{Rows, family_name};
use super::text::Text;
use super::{Metrics, catalogue};
use crate::apply::{TablesView, view};
use crate::dataplane::mapped::MappedMemory;
use crate::dataplane::{Counters, Datapath, Map, Result, XdpPlace};
use crate::health::Health;
use crate::k8s::SourceStats;
use crate::model::Family;
use crate::options::MetricsDetail;

/// Reads and writes all metrics.
pub struct Scrape {
    /// What the agent counts itself.
    pub metrics: Arc<Metrics>,
    /// What knows which Services are late.
    pub health: Health,
    /// What the source counts.
    pub source: Arc<SourceStats>,
    /// The programs' counters.
    pub datapath: Arc<Datapath>,
    /// The tables.
    pub memory: Arc<MappedMemory>,
    /// How much is told of single Services.
    pub detail: watch::Receiver<MetricsDetail>,
    /// How many series that may be.
    pub max_series: watch::Receiver<u32>,
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Scrape {
    /// All metrics. Blocks for as long as the counters take to be read.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn text(&self) -> Result<String> {
        let counters = Counters::new(self.datapath.maps())?;
        let view = view(&self.memory);
        let mut text = Text::default();
        self.of_rounds(&mut text);
        self.of_changes(&mut text);
        no_local_endpoints(&mut text, &view);
        for (family, answers) in
            [(&list::HEALTHZ, &self.metrics.healthz), (&list::LIVEZ, &self.metrics.livez)]
        {
            let mut samples = text.family(family);
            for (code, count) in answers.by_code() {
                samples.sample(&[("code", code)], count);
            }
        }
        text.family(&list::BUILD).sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        self.of_tables(&mut text, &view);
        let mut samples = text.family(&list::DROPS);
        for (reason, packets) in counters.reasons()? {
            samples.sample(&[("reason", reason.name())], packets);
        }
        self.of_connections(&mut text);
        self.of_devices(&mut text, &counters)?;
        self.of_source(&mut text);
        let active = self.metrics.live().by_service.clone();
        let (detail, most) = (*self.detail.borrow(), *self.max_series.borrow() as usize);
        Rows::read(&view, &counters, &active, detail, most)?.write(&mut text);
        of_process(&mut text);
        Ok(text.finish())
    }

    /// A round is of both families, and is told as one of each, as a kube-proxy for both families has it.
    fn of_rounds(&self, text: &mut Text) {
        let metrics = &self.metrics;
        let (full, partial) = (metrics.full_rounds.snapshot(), metrics.partial_rounds.snapshot());
        for (family, snapshot) in [
            (&list::SYNC, &full.clone().and(&partial)),
            (&list::SYNC_FULL, &full),
            (&list::SYNC_PARTIAL, &partial),
            (&list::PROGRAMMING, &metrics.programming.snapshot()),
        ] {
            let mut samples = text.family(family);
            for family in FAMILIES {
                samples.histogram(&[("ip_family", family_name(family))], snapshot);
            }
        }
        for (family, millis) in
            [(&list::LAST_SYNC, metrics.last_sync.get()), (&list::LAST_QUEUED, metrics.changes.last_millis())]
        {
            let mut samples = text.family(family);
            for family in FAMILIES {
                samples.sample(&[("ip_family", family_name(family))], millis as f64 / 1e3);
            }
        }
        text.family(&list::PLANNING).histogram(&[], &metrics.planning.snapshot());
        text.family(&list::EVENT_TO_KERNEL).histogram(&[], &metrics.event_to_kernel.snapshot());
        text.family(&list::FAILURES).sample(&[], metrics.failures.get());
        text.family(&list::LATE).sample(&[], self.health.proxy().late_services);
    }

    fn of_changes(&self, text: &mut Text) {
        let changes = &self.metrics.changes;
        text.family(&list::ENDPOINTS_PENDING).sample(&[], changes.slices.pending());
        text.family(&list::ENDPOINTS_TOTAL).sample(&[], changes.slices.total());
        text.family(&list::SERVICES_PENDING).sample(&[], changes.services.pending());
        text.family(&list::SERVICES_TOTAL).sample(&[], changes.services.total());
    }

    fn of_tables(&self, text: &mut Text, view: &TablesView) {
        let services = |family| {
            let of_family = |key: &crate::plan::ServicePortKey| key.family == family;
            view.services.iter().filter(|service| service.key.as_ref().is_some_and(of_family)).count()
        };
        let endpoints = |family| view.backends.iter().filter(|backend| backend.family == family).count();
        let mut samples = text.family(&list::SERVICES);
        for family in FAMILIES {
            samples.sample(&[("ip_family", family_name(family))], services(family));
        }
        let mut samples = text.family(&list::ENDPOINTS);
        for family in FAMILIES {
            samples.sample(&[("ip_family", family_name(family))], endpoints(family));
        }
        let maps = self.datapath.maps();
        let [connections4, connections6] = self.metrics.live().entries;
        use lb_common::layout::Table;
        let tables = [
            ("services", Map::Table(Table::Services), view.services.len() as u64),
            ("endpoints4", Map::Table(Table::Backends4), endpoints(Family::V4) as u64),
            ("endpoints6", Map::Table(Table::Backends6), endpoints(Family::V6) as u64),
            ("connections4", Map::Connections4, connections4),
            ("connections6", Map::Connections6, connections6),
        ];
        let mut samples = text.family(&list::TABLE_ENTRIES);
        for (name, _, entries) in tables {
            samples.sample(&[("table", name)], entries);
        }
        let mut samples = text.family(&list::TABLE_SIZE);
        for (name, map, _) in tables {
            // Row 0 of the service side is never used.
            let unused = u32::from(matches!(map, Map::Table(_)));
            samples.sample(&[("table", name)], maps.max_entries(map) - unused);
        }
    }

    fn of_connections(&self, text: &mut Text) {
        let metrics = &self.metrics;
        let by_state = metrics.live().by_state.clone();
        let mut samples = text.family(&list::CONNECTIONS);
        for (state, flows) in &by_state {
            samples.sample(&[("state", state)], flows);
        }
        if let Ok(row) = Counters::new(self.datapath.maps()).and_then(|counters| counters.handshakes()) {
            text.family(&list::HANDSHAKES).histogram(&[], &Snapshot::of_handshakes(&row));
        }
        text.family(&list::SWEEPS).histogram(&[], &metrics.sweeps.snapshot());
        text.family(&list::EXPIRED).sample(&[], metrics.expired.get());
        text.family(&list::ORPHANS).sample(&[], metrics.orphans.get());
    }

    fn of_devices(&self, text: &mut Text, counters: &Counters<'_>) -> Result<()> {
        let metrics = &self.metrics;
        text.family(&list::DEVICES)
            .sample(&[("role", "pod")], metrics.pod_devices.get())
            .sample(&[("role", "net")], metrics.net_devices.get());
        let mut samples = text.family(&list::XDP_DEVICES);
        for place in XdpPlace::ALL {
            samples.sample(&[("mode", place.name())], metrics.xdp_devices(place).get());
        }
        let mut samples = text.family(&list::XDP_PACKETS);
        for (to, packets) in counters.wire()? {
            samples.sample(&[("to", to.name())], packets);
        }
        text.family(&list::REPAIRS)
            .sample(&[("at", "device")], metrics.device_repairs.get())
            .sample(&[("at", "cgroup")], metrics.socket_repairs.get())
            .sample(&[("at", "xdp")], metrics.xdp_repairs.get())
            .sample(&[("at", "bpffs")], metrics.table_repairs.get());
        Ok(())
    }

    fn of_source(&self, text: &mut Text) {
        let source = &self.source;
        text.family(&list::LISTS).sample(&[], source.lists.load(Ordering::Relaxed));
        text.family(&list::SOURCE_FAILURES).sample(&[], source.failures.load(Ordering::Relaxed));
        text.family(&list::SKIPPED)
            .sample(&[("what", "object")], source.objects_skipped.load(Ordering::Relaxed))
            .sample(&[("what", "field")], source.fields_skipped.load(Ordering::Relaxed));
    }
}

/// Service ports whose Local policy meets no local endpoint: their new connections are dropped (S-22).
fn no_local_endpoints(text: &mut Text, view: &TablesView) {
    let mut samples = text.family(&catalogue::NO_LOCAL);
    for family in FAMILIES {
        for (policy, class) in [("internal", Class::Internal), ("external", Class::External)] {
            let dropping = view.services.iter().filter(|service| {
                service.key.as_ref().is_some_and(|key| key.family == family)
                    && service.class(class).verdict == "drop"
            });
            let labels = [("ip_family", family_name(family)), ("traffic_policy", policy)];
            samples.sample(&labels, dropping.count());
        }
    }
}

fn of_process(text: &mut Text) {
    let Some(process) = Process::read() else { return };
    text.family(&list::CPU).sample(&[], process.cpu);
    text.family(&list::RESIDENT).sample(&[], process.resident);
    text.family(&list::VIRTUAL).sample(&[], process.virtual_memory);
    text.family(&list::DESCRIPTORS).sample(&[], process.descriptors);
    text.family(&list::START).sample(&[], process.started);
}
