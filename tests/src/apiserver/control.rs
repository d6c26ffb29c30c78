//! How the server behaves badly on demand.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

/// How many requests are remembered.
const LOG: usize = 10_000;

/// The switches, shared by the server's thread and whoever turns them.
#[derive(Debug)]
pub(crate) struct Control {
    settings: Mutex<Settings>,
    streaming_lists: AtomicBool,
    paused: AtomicBool,
    /// Counts up when watches are to break mid-line.
    pub(crate) broken: watch::Sender<u64>,
    /// Counts up when connections are to be cut.
    pub(crate) cut: watch::Sender<u64>,
    /// Counts up when the time between bookmarks changes.
    pub(crate) bookmarks: watch::Sender<Duration>,
}

#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// The token that is accepted; `None`: none is.
    pub(crate) token: Option<String>,
    /// How many of the next requests fail, and with which status.
    pub(crate) failing: (u32, u16),
    /// How long every answer is held back.
    pub(crate) delay: Duration,
    /// Plural names of types the token may not touch.
    pub(crate) forbidden: HashSet<String>,
    pub(crate) log: VecDeque<String>,
}

impl Control {
    pub(crate) fn new(token: String, streaming_lists: bool, bookmark_interval: Duration) -> Self {
        Self {
            settings: Mutex::new(Settings { token: Some(token), ..Settings::default() }),
            streaming_lists: AtomicBool::new(streaming_lists),
            paused: AtomicBool::new(false),
            broken: watch::Sender::new(0),
            cut: watch::Sender::new(0),
            bookmarks: watch::Sender::new(bookmark_interval),
        }
    }

    pub(crate) fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn log(&self, line: String) {
        let mut settings = self.settings();
        if settings.log.len() == LOG {
            settings.log.pop_front();
        }
        settings.log.push_back(line);
    }

    /// The status the next request is to fail with.
    pub(crate) fn take_failure(&self) -> Option<u16> {
        let mut settings = self.settings();
        let (left, status) = settings.failing;
        settings.failing.0 = left.saturating_sub(1);
        (left > 0).then_some(status)
    }

    pub(crate) fn break_watches(&self) {
        self.broken.send_modify(|count| *count += 1);
    }

    pub(crate) fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
        self.cut.send_modify(|count| *count += 1);
    }

    pub(crate) fn resume(&self) {
        self.paused.store(false, Ordering::Relaxed);
    }

    pub(crate) fn set_streaming_lists(&self, understood: bool) {
        self.streaming_lists.store(understood, Ordering::Relaxed);
    }

    pub(crate) fn streaming_lists(&self) -> bool {
        self.streaming_lists.load(Ordering::Relaxed)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }
}
