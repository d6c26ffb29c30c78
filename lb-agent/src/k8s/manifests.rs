//! A directory of Kubernetes YAML and JSON as a source, followed for changes.
//!
//! The directory stands in for the API server, so what a server would do is done here: selection (S-01, S-02), and
//! the defaults that matter (namespace, port name).

mod decode;
mod files;
mod merged;
mod text;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::problems::SourceStats;
use super::select::Selection;
use super::trouble::Trouble;
use crate::index::{Change, Event, StoreEvent};
use crate::model::{EndpointSlice, NodeFacts, Service};
pub use decode::ManifestDecoder;
use merged::Merged;

/// After the first sign of a change, further ones are awaited this long; a copied directory is one change then.
const SETTLE: Duration = Duration::from_millis(3);
/// How often a directory that went away is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Which directory to read, and as which node.
#[derive(Clone, Debug)]
pub struct ManifestOptions {
    /// The directory; `*.yaml`, `*.yml` and `*.json` in it are read, subdirectories are not.
    pub directory: PathBuf,
    /// The facts of our node, which no directory tells.
    pub node: NodeFacts,
    /// Which objects are ours.
    pub selection: Selection,
}

/// Why a directory cannot be a source.
#[derive(Debug, thiserror::Error)]
#[error("manifests in {}: {reason}", directory.display())]
pub struct ManifestError {
    /// The directory.
    pub directory: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// The directory and its change notifications.
pub(super) struct Manifests {
    options: ManifestOptions,
    watcher: RecommendedWatcher,
    signs: mpsc::UnboundedReceiver<Sign>,
}

/// A sign that something changed.
#[derive(Debug)]
enum Sign {
    /// This file.
    File(PathBuf),
    /// Anything: the notifications are incomplete, or many files changed in one go.
    Everything,
    /// The directory itself is gone.
    Directory,
}

impl Manifests {
    pub(super) fn open(options: ManifestOptions) -> Result<Self, ManifestError> {
        let failed = |reason: String| ManifestError { directory: options.directory.clone(), reason };
        // Notifications before the first look: nothing falls between.
        let (sender, signs) = mpsc::unbounded_channel();
        let directory = options.directory.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            for sign in signs_of(event, &directory) {
                // Nobody listens any more when the source has ended; the watcher goes with it.
                let _ = sender.send(sign);
            }
        })
        .map_err(|error| failed(error.to_string()))?;
        watcher
            .watch(&options.directory, RecursiveMode::NonRecursive)
            .map_err(|error| failed(error.to_string()))?;
        files::list(&options.directory).map_err(|error| failed(error.to_string()))?;
        Ok(Self { options, watcher, signs })
    }

    pub(super) async fn run(mut self, events: mpsc::Sender<Event>, stats: Arc<SourceStats>) {
        let mut reader = Reader::new(self.options.selection.clone(), stats);
        let listed = files::list(&self.options.directory).unwrap_or_default();
        for file in &listed {
            reader.read(file);
        }
        let first = [
            Change::Node(self.options.node.clone()),
            Change::Services(StoreEvent::Reset(reader.services.all())),
            Change::Slices(StoreEvent::Reset(reader.slices.all())),
        ];
        for change in first {
            if events.send(Event::now(change)).await.is_err() {
                return;
            }
        }
        let mut trouble = Trouble::new("manifests directory");
        while let Some((changed, received)) = self.next_change(&events).await {
            let listed = match files::list(&self.options.directory) {
                Ok(listed) => listed,
                Err(error) => {
                    SourceStats::add(&reader.stats.failures, 1);
                    trouble.failed(received, &error.to_string());
                    continue;
                }
            };
            trouble.recovered(received);
            for change in reader.update(&listed, &changed) {
                if events.send(Event { received, triggered: None, change }).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Waits for a change, and a little longer for what belongs to it. `None` when nobody listens any more.
    async fn next_change(&mut self, events: &mpsc::Sender<Event>) -> Option<(Changed, std::time::Instant)> {
        let mut changed = Changed::default();
        let sign = tokio::select! {
            sign = self.signs.recv() => sign?,
            () = events.closed() => return None,
        };
        let received = std::time::Instant::now();
        let mut directory_gone = changed.add(sign);
        while let Ok(Some(sign)) = tokio::time::timeout(SETTLE, self.signs.recv()).await {
            directory_gone |= changed.add(sign);
            if received.elapsed() > 10 * SETTLE {
                break;
            }
        }
        while directory_gone && !self.watch_again() {
            tokio::select! {
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = events.closed() => return None,
            }
        }
        Some((changed, received))
    }

    fn watch_again(&mut self) -> bool {
        match self.watcher.watch(&self.options.directory, RecursiveMode::NonRecursive) {
            Ok(()) => true,
            Err(error) => {
                debug!(directory = %self.options.directory.display(), %error, "no manifests directory");
                false
            }
        }
    }
}

/// The files to read again.
#[derive(Debug, Default)]
struct Changed {
    files: BTreeSet<PathBuf>,
    everything: bool,
}

impl Changed {
    /// Takes in a sign. True when the directory has to be watched anew.
    fn add(&mut self, sign: Sign) -> bool {
        match sign {
            Sign::File(path) => {
                self.files.insert(path);
                false
            }
            Sign::Everything => {
                self.everything = true;
                false
            }
            Sign::Directory => {
                self.everything = true;
                warn!("the manifests directory is gone; going on with what is known");
                true
            }
        }
    }

    fn contains(&self, file: &Path) -> bool {
        self.everything || self.files.contains(file)
    }
}

/// What a notification means. Data written to a file means nothing until the file is closed, or half of it is read.
fn signs_of(event: notify::Result<notify::Event>, directory: &Path) -> Vec<Sign> {
    let event = match event {
        Ok(event) => event,
        Err(error) => {
            warn!(%error, "manifests: notification failed");
            return vec![Sign::Everything];
        }
    };
    if event.need_rescan() {
        return vec![Sign::Everything];
    }
    let relevant = match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(kind) => matches!(kind, ModifyKind::Name(_)),
        EventKind::Create(_) | EventKind::Remove(_) => true,
        EventKind::Any | EventKind::Other => false,
    };
    let sign = |path: PathBuf| {
        if path == directory {
            let removed = matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
            removed.then_some(Sign::Directory)
        } else if files::is_manifest(&path) {
            Some(Sign::File(path))
        } else {
            // How a mounted ConfigMap changes: the files are links, and only what they lead through is replaced.
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".."));
            hidden.then_some(Sign::Everything)
        }
    };
    if relevant { event.paths.iter().cloned().filter_map(sign).collect() } else { Vec::new() }
}

/// Reads files and keeps what is in them.
struct Reader {
    stats: Arc<SourceStats>,
    decoder: ManifestDecoder,
    services: Merged<Service>,
    slices: Merged<EndpointSlice>,
    known: BTreeSet<PathBuf>,
}

impl Reader {
    fn new(selection: Selection, stats: Arc<SourceStats>) -> Self {
        Self {
            decoder: ManifestDecoder::new(selection, stats.clone()),
            stats,
            services: Merged::default(),
            slices: Merged::default(),
            known: BTreeSet::new(),
        }
    }

    /// Brings everything up to date with the directory.
    fn update(&mut self, listed: &[PathBuf], changed: &Changed) -> Vec<Change> {
        let mut changes = Vec::new();
        let gone: Vec<_> = self.known.iter().filter(|file| !listed.contains(file)).cloned().collect();
        for file in gone {
            changes.extend(self.replace(&file, Vec::new(), Vec::new()));
            self.known.remove(&file);
        }
        for file in listed {
            if changed.contains(file) || !self.known.contains(file) {
                changes.extend(self.read(file));
            }
        }
        changes
    }

    /// Reads one file; if it cannot be read or parsed, what was in it stays.
    fn read(&mut self, file: &Path) -> Vec<Change> {
        self.known.insert(file.to_owned());
        let values = match text::file(file) {
            Ok(values) => values,
            Err(error) => {
                SourceStats::add(&self.stats.failures, 1);
                tracing::error!("{error}; its last good content stays in force");
                return Vec::new();
            }
        };
        let mut services = Vec::new();
        let mut slices = Vec::new();
        for value in values {
            match self.decoder.object(value).map(|event| event.change) {
                Some(Change::Services(StoreEvent::Apply(service))) => services.push(service),
                Some(Change::Slices(StoreEvent::Apply(slice))) => slices.push(slice),
                // Not ours, or of no use: as if it were not in the file.
                _ => {}
            }
        }
        self.replace(file, services, slices)
    }

    fn replace(&mut self, file: &Path, services: Vec<Service>, slices: Vec<EndpointSlice>) -> Vec<Change> {
        let services = self.services.replace(file, services, |service| service.name.clone());
        let slices = self.slices.replace(file, slices, |slice| slice.name.clone());
        services.into_iter().map(Change::Services).chain(slices.into_iter().map(Change::Slices)).collect()
    }
}

#[cfg(test)]
#[path = "manifests/manifests_tests.rs"]
mod tests;
