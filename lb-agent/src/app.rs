//! `lb-agent run`: puts source, planner, tables, devices and connections together.

mod addresses;
mod connections;
mod devices;
mod endpoints;
mod instance;
mod keep;
mod latency;
mod masquerade;
mod network;
mod ranges;
mod ready;
mod reload;
mod serve;
mod shutdown;
mod sockets;
mod tables;
mod xdp;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::apply::{Applier, view};
use crate::config::{Effective, ProxyFile};
use crate::dataplane::mapped::{Access, MappedMemory};
use crate::dataplane::memory::Membarrier;
use crate::dataplane::{Adoption, AttachMode, Attacher, Datapath, LoadOptions, Map, Maps, Pins, Sizes};
use crate::health::{BindFailure, Health, HealthServer};
use crate::index::{Engine, EngineConfig, Event, Failed, Round};
use crate::k8s::{ClusterOptions, ManifestOptions, Report, Reporter, Selection, Source};
use crate::live::{self, Knobs, LogFilter};
use crate::metrics::{Metrics, Scrape};
use crate::model::NodeFacts;
use crate::net::{Depth, DeviceSelection, FilterRemovals, Follower};
use crate::options::{ForwardingMode, RunOptions};
use crate::serve::{ProxyAnswers, StatusAnswers};
use addresses::Addresses;
use devices::Devices;
use latency::Latencies;
use network::Network;
use ranges::Ranges;
use ready::ReadyFile;
use tables::{SharedTables, Sink};

pub use instance::Instance;

/// Mark of errors that the operator's configuration caused.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("bad configuration")]
pub struct BadConfiguration;

/// Marks an error as one of configuration.
pub fn bad_configuration(error: anyhow::Error) -> anyhow::Error {
    error.context(BadConfiguration)
}

/// What was configured, beside the values themselves.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// Every flag, with where its value comes from.
    pub effective: Effective,
    /// What kube-proxy's configuration file said, where there is one.
    pub file: Option<ProxyFile>,
}

/// Events between source and engine.
const EVENTS: usize = 1024;
/// How long an agent that is about to end may keep its bpf root.
const CLAIM: Duration = Duration::from_secs(10);
/// How long what is due may take at the end.
const LAST_ROUND: Duration = Duration::from_secs(5);

/// Runs until a signal ends it. `log` is the process's own.
///
/// # Errors
/// [`BadConfiguration`] when the options make no sense; otherwise whatever made starting, or going on, impossible.
pub async fn run(options: RunOptions, configuration: Configuration, log: LogFilter) -> anyhow::Result<()> {
    let started = Instant::now();
    tell(&configuration);
    let stop = shutdown::signals()?;
    let sizes = options.table_sizes();
    sizes.check().map_err(|error| bad_configuration(error.into()))?;
    let node_name = node_name(&options)?;
    let addresses = options.node.addresses().map_err(|wrong| bad_configuration(anyhow::anyhow!(wrong)))?;
    let ready = ReadyFile::new(options.files.ready_file.as_deref())?;
    let latencies = Latencies::new(options.files.latency_log.as_deref())
        .context("opening the latency log")
        .map_err(bad_configuration)?;
    let source = source(&options, &node_name).await?;
    let health = Health::new(Duration::from_secs(options.serve.health_timeout.into()));
    let engine = Engine::new(EngineConfig::default());
    let metrics = Arc::new(Metrics::new(engine.counts()));
    let _instance = claim(&options.datapath.pins.bpf_root).await?;

    let knobs = Knobs::new(live::Initial {
        log,
        xdp: options.datapath.xdp,
        metrics_detail: options.serve.metrics_detail,
        metrics_max_series: options.serve.metrics_max_series,
    });
    if let Some(file) = options.serve.config.clone() {
        tokio::spawn(reload::follow_file(file, configuration.clone(), knobs.clone()));
    }
    let turning = tokio::spawn(serve::turn(options.files.run_dir.clone(), knobs.clone(), health.clone()));
    let mut servers = serve::Servers::open(&options.serve)?;
    servers.tell_health(ProxyAnswers {
        health: health.clone(),
        source: source.stats(),
        metrics: metrics.clone(),
    });
    serve::set_oom_score(options.serve.oom_score_adj);

    let pins = Pins::new(&options.datapath.pins.bpf_root);
    let sockets = sockets::options(&options)?;
    let load = LoadOptions {
        object: options.datapath.object.object.clone(),
        sizes,
        forwarding: options.datapath.forwarding.into(),
        log: options.datapath.datapath_log,
        masquerade_ports: masquerade::ports(&options.node)?,
        echo_reply: options.datapath.echo_reply,
        sockets: sockets.as_ref().map(|(options, _)| *options),
    };
    let mut datapath = Datapath::load(&pins, &load).map_err(|error| {
        let configured = error.is_of_configuration();
        let error = anyhow::Error::from(error);
        if configured { bad_configuration(error) } else { error }
    })?;
    if options.datapath.datapath_log {
        tokio::spawn(datapath.program_log()?);
    }
    let datapath = Arc::new(datapath);
    let memory = Arc::new(datapath.maps().tables(Access::Write).context("mapping the tables")?);
    let applier = Applier::adopt(memory.clone(), Membarrier).context("taking over the tables")?;

    let redirect = options.datapath.forwarding == ForwardingMode::Redirect;
    let depth = if redirect { Depth::Ways } else { Depth::Devices };
    let network = Network::start().context("starting a thread")?;
    let follower = {
        let _network = network.enter();
        Follower::connect(depth).context("subscribing to the kernel's notifications")?
    };
    let attacher = Attacher::new(&datapath, &pins, options.datapath.attach, follower.handle().clone())?;
    log_start(&options, &node_name, &datapath, &applier, &attacher);

    let sockets = sockets::Keeper::new(&datapath, &pins, sockets, metrics.clone())?;
    let (question_sender, questions) = mpsc::unbounded_channel();
    let tables = SharedTables::new(applier, redirect.then_some(question_sender));
    let selection = DeviceSelection {
        devices: options.devices.pod_devices.clone(),
        bridges: options.devices.pod_bridges.clone(),
        net: options.devices.net_devices.clone(),
    };
    let removals = match attacher.mode() {
        AttachMode::Tc => {
            let _network = network.enter();
            Some(FilterRemovals::connect().context("subscribing to traffic control")?)
        }
        _ => None,
    };
    let mut devices = Devices {
        follower,
        attacher,
        selection,
        addresses: Addresses::new(addresses, datapath.clone(), tables.clone()),
        tables: tables.clone(),
        questions,
        removals,
        lingering: BTreeMap::new(),
        left_out: BTreeSet::new(),
        metrics: metrics.clone(),
        wire: xdp::Wire::new(datapath.clone(), &pins, knobs.xdp(), metrics.clone()),
    };
    devices.read().await?;
    info!(devices = devices.net_devices().join(","), "network devices");
    // The ways of the agent before may be wrong by now.
    let known: Vec<IpAddr> = if redirect {
        view(&memory).backends.iter().map(|backend| backend.address).collect()
    } else {
        Vec::new()
    };
    tables.lock().reset_ways(known);
    // Programs whose tables are empty serve nobody: where old programs still run on old tables, they go on until the
    // new tables are filled.
    let attach_late = match datapath.adoption() {
        Adoption::Replaced(_) => true,
        Adoption::New => devices.are_served_by_filters().await,
        Adoption::Adopted => false,
    };

    let (synced_sender, synced) = oneshot::channel();
    let (events, receiver) = mpsc::channel(EVENTS);
    let reporter = source.reporter();
    let serving_health = tokio::spawn(health_server(&health, &devices, &reporter).run());
    let stale = sockets::StaleSockets::start(load.sockets.as_ref(), datapath.clone(), memory.clone())?;
    let sink = Sink {
        tables: tables.clone(),
        datapath: datapath.clone(),
        sockets: stale,
        health: health.clone(),
        reporter,
        contested: BTreeMap::new(),
    };
    let ranges = service_ranges(&options, &source, &tables);
    let scrape = Scrape {
        metrics: metrics.clone(),
        health,
        source: source.stats(),
        datapath: datapath.clone(),
        memory: memory.clone(),
        detail: knobs.metrics_detail(),
        max_series: knobs.metrics_max_series(),
    };
    servers.tell_status(StatusAnswers::new(
        scrape,
        serve::configz(&options, &node_name, &configuration),
        knobs,
    ));
    let observers = Observers { latencies, metrics: metrics.clone() };
    let mut engine =
        drive(engine, receiver, sink, observers, FirstSync { sender: Some(synced_sender), ranges });
    let source = tokio::spawn(source.run(events));
    let keeping = tokio::spawn(keep::keep_tables(datapath.clone(), pins, metrics.clone()));
    let timeouts = (&options.timeouts).into();
    let sweeping = tokio::spawn(connections::sweep(datapath.clone(), memory.clone(), timeouts, metrics));
    let others = Handle::current();
    let mut following =
        network.spawn(follow(devices, sockets, others, synced, attach_late, ready.clone(), started));

    let outcome = tokio::select! {
        () = stop.first() => Ok(()),
        _ = &mut following => Err(anyhow::anyhow!("devices are not followed any more (see above); start lb-agent again")),
        _ = &mut engine => Err(anyhow::anyhow!("Services are not followed any more (see above); start lb-agent again")),
    };
    info!("ending; every Service goes on working");
    turning.abort();
    keeping.abort();
    sweeping.abort();
    serving_health.abort();
    following.abort();
    source.abort();
    if outcome.is_ok() && timeout(LAST_ROUND, engine).await.is_err() {
        warn!("changes that were due are left to the next agent");
    }
    ready.remove();
    outcome
}

/// Prints what is in effect, and what of the configuration file is not.
fn tell(configuration: &Configuration) {
    let (set, defaults) = configuration.effective.texts();
    info!(set, defaults, "configuration in effect");
    let Some(file) = &configuration.file else { return };
    if !file.without_meaning.is_empty() {
        warn!(
            fields = file.without_meaning.join(", "),
            "fields of the configuration file that mean nothing here"
        );
    }
    for note in &file.notes {
        warn!("configuration file: {note}");
    }
}

/// Who hears of every round.
struct Observers {
    latencies: Latencies,
    metrics: Arc<Metrics>,
}

/// What happens after the first round.
struct FirstSync {
    sender: Option<oneshot::Sender<()>>,
    ranges: Ranges,
}

/// The server of health check node ports, at the addresses that `devices` find.
fn health_server(
    health: &Health,
    devices: &Devices,
    reporter: &Reporter,
) -> HealthServer<impl FnMut(&BindFailure) + use<>> {
    let reporter = reporter.clone();
    HealthServer::new(health.clone(), devices.addresses.subscribe(), move |failure| {
        reporter.report(Report {
            service: failure.service.clone(),
            reason: "FailedToStartServiceHealthcheck",
            action: "StartServiceHealthcheck",
            note: failure.note.clone(),
        });
    })
}

/// The ranges of cluster IPs: as configured, else as the API server tells, else none.
fn service_ranges(options: &RunOptions, source: &Source, tables: &SharedTables) -> Ranges {
    let flags = &options.source.service_cidr;
    let configured = || Some(flags.iter().map(|range| (range.address, range.prefix)).collect());
    if !flags.is_empty() {
        return Ranges::new(tables.clone(), configured());
    }
    match source.service_ranges() {
        Some(told) => {
            let ranges = Ranges::new(tables.clone(), None);
            tokio::spawn(ranges.clone().follow(told));
            ranges
        }
        None => Ranges::new(tables.clone(), configured()),
    }
}

/// Runs the engine on a thread of its own: applying may wait for running programs to end.
fn drive(
    engine: Engine,
    events: mpsc::Receiver<Event>,
    mut sink: Sink,
    mut observers: Observers,
    mut first: FirstSync,
) -> tokio::task::JoinHandle<()> {
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let tables = sink.tables.clone();
        let observe = |round: &Round| {
            observers.metrics.round(round);
            observers.latencies.record(round);
            if let Some(failure) = &round.failure {
                warn!(%failure, "changes are not in the kernel yet");
            }
            let complete = !round.failure.as_ref().is_some_and(|failure| failure.failed == Failed::All);
            if round.full
                && complete
                && let Some(sender) = first.sender.take()
            {
                first.ranges.synced();
                let services = tables.lock().applier().service_count();
                info!(
                    services,
                    planning_us = round.planning.as_micros() as u64,
                    "first sync is in the kernel"
                );
                // The receiver is gone when the agent ends already.
                let _ = sender.send(());
            }
        };
        runtime.block_on(engine.drive(events, &mut sink, observe));
        if let Some((changes, median_us, p99_us)) = observers.latencies.summary() {
            info!(changes, median_us, p99_us, "time from event to kernel (at most)");
        }
    })
}

/// Follows devices. Ready is who has attached the programs to every pod's device and has seen the first sync. What has
/// nothing to do with devices is left to the threads of `others`.
async fn follow(
    mut devices: Devices,
    mut sockets: sockets::Keeper,
    others: Handle,
    mut synced: oneshot::Receiver<()>,
    attach_late: bool,
    ready: ReadyFile,
    started: Instant,
) {
    if attach_late {
        // Devices that come in the meantime are found by reading again.
        if (&mut synced).await.is_err() || devices.read().await.is_err() {
            return;
        }
    }
    sockets.attach();
    devices.attach_all().await;
    let attached = devices.attached();
    let announcing = async move {
        if attach_late || synced.await.is_ok() {
            announce(&ready, attached, started);
        }
    };
    // A set ends its tasks when it is dropped, with this one.
    let mut tasks = JoinSet::new();
    tasks.spawn_on(sockets.keep(), &others);
    let keeping = async move {
        if let Some(Err(error)) = tasks.join_next().await
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    };
    tokio::join!(announcing, devices.run(), keeping);
}

fn announce(ready: &ReadyFile, devices: usize, started: Instant) {
    match ready.write() {
        Ok(()) => info!(devices, after_ms = started.elapsed().as_millis() as u64, "ready"),
        Err(error) => error!("{error:#}"),
    }
}

async fn claim(root: &Path) -> anyhow::Result<Instance> {
    let deadline = Instant::now() + CLAIM;
    loop {
        match Instance::claim(root) {
            Ok(instance) => return Ok(instance),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => {
                let root = root.display();
                return Err(error).with_context(|| format!("another lb-agent runs with --bpf-root {root}"));
            }
        }
    }
}

/// The node's name: as configured, else the host name, in lower case as Kubernetes has it.
fn node_name(options: &RunOptions) -> anyhow::Result<String> {
    let name = match &options.source.node_name {
        Some(name) => name.trim().to_owned(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")
            .context("reading the host name; name the node with --node-name")?
            .trim()
            .to_lowercase(),
    };
    if name.is_empty() {
        let error = anyhow::anyhow!("the node has no name: name it with --node-name");
        return Err(bad_configuration(error));
    }
    Ok(name)
}

async fn source(options: &RunOptions, node_name: &str) -> anyhow::Result<Source> {
    let flags = &options.source;
    let selection = Selection {
        service_proxy_name: flags.service_proxy_name.clone(),
        algorithm: options.datapath.load_balancing.into(),
    };
    let source = match &flags.manifests {
        Some(directory) => Source::manifests(ManifestOptions {
            // Notifications about changes name absolute paths.
            directory: std::path::absolute(directory)
                .with_context(|| format!("--manifests {}", directory.display()))
                .map_err(bad_configuration)?,
            node: NodeFacts { name: node_name.into(), zone: flags.zone.as_deref().map(Into::into) },
            selection,
        })
        .map_err(anyhow::Error::from),
        None => {
            let cluster = ClusterOptions {
                kubeconfig: flags.kubeconfig.clone(),
                context: flags.context.clone(),
                server: flags.server.clone(),
                node_name: node_name.to_owned(),
                selection,
            };
            Source::cluster(cluster).await.map_err(anyhow::Error::from)
        }
    };
    source.map_err(bad_configuration)
}

fn log_start(
    options: &RunOptions,
    node_name: &str,
    datapath: &Datapath,
    applier: &Applier<Arc<MappedMemory>>,
    attacher: &Attacher,
) {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let source = match (&options.source.manifests, &options.source.kubeconfig) {
        (Some(directory), _) => format!("manifests in {}", directory.display()),
        (None, Some(file)) => format!("API server of {}", file.display()),
        (None, None) => "API server".to_owned(),
    };
    info!(
        version = env!("CARGO_PKG_VERSION"),
        kernel = kernel.trim(),
        node = node_name,
        source,
        forwarding = ?options.datapath.forwarding,
        attach = ?attacher.mode(),
        bpf_root = %options.datapath.pins.bpf_root.display(),
        pod_devices = %options.devices.pod_devices,
        pod_bridges = %options.devices.pod_bridges,
        net_devices = %options.devices.net_devices,
        node_port_addresses = list(&options.node.node_port_addresses),
        "lb-agent starts",
    );
    match datapath.adoption() {
        Adoption::New => info!("new tables"),
        Adoption::Adopted => {
            let services = applier.service_count();
            info!(services, "tables of an earlier agent adopted: every flow stays where it is");
            warn_of_sizes(&options.table_sizes(), datapath.maps());
        }
        Adoption::Replaced(reason) => warn!(
            reason,
            "the tables of an earlier agent cannot be read and are replaced: it serves on until the new ones are \
             filled; then connections are balanced anew",
        ),
    }
    if options.datapath.forwarding == ForwardingMode::Redirect {
        warn!(
            "forwarding redirect: packets bypass the host's netfilter; network policy enforced there does not apply \
             to them"
        );
    }
}

/// Values with commas between them.
fn list<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

fn warn_of_sizes(sizes: &Sizes, maps: &Maps) {
    let other: Vec<String> = Map::all()
        .filter(|map| maps.max_entries(*map) != map.max_entries(sizes))
        .map(|map| format!("{} {}", map.name(), maps.max_entries(map)))
        .collect();
    if !other.is_empty() {
        warn!(
            kept = other.join(", "),
            "adopted tables keep their sizes; new ones apply after `lb-agent cleanup`"
        );
    }
}
