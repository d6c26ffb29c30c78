//! One run of a lab: the name everything it makes carries, and the removal of what dead runs left behind.
//!
//! Everything is called `lbt-<pid>_<start time>_<n>…`: process id and start time of the owner tell, also after a reboot
//! of the counter of process ids, whether the owner lives. Two runs can therefore coexist, in one process or in several.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, Once, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context;

use super::process::Running;
use crate::netns::{NETNS_DIR, lock, sys, unlink};

const PREFIX: &str = "lbt-";
const STATE_DIR: &str = "/run";
const ETC_NETNS: &str = "/etc/netns";
const BPFFS: &str = "/sys/fs/bpf";

/// The name, the state directory and the child processes of one lab.
pub(crate) struct Run {
    prefix: String,
    state: PathBuf,
    cgroup_root: PathBuf,
    keep: AtomicBool,
    processes: Mutex<Vec<Weak<Running>>>,
}

impl Run {
    /// Starts a run: removes what dead runs left (once a process) and makes the state directory.
    ///
    /// # Errors
    /// No cgroup v2 or bpffs, or the state directory cannot be made.
    pub(crate) fn start() -> anyhow::Result<Self> {
        static LEFTOVERS: Once = Once::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        LEFTOVERS.call_once(|| {
            remove_leftovers();
        });
        ensure_bpffs()?;
        let pid = std::process::id();
        let start = start_time(pid).context("reading this process's start time")?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}{pid}_{start}_{number}");
        let state = Path::new(STATE_DIR).join(&prefix);
        fs::create_dir_all(state.join("logs")).with_context(|| format!("creating {}", state.display()))?;
        fs::create_dir_all(state.join("processes"))?;
        Ok(Self {
            prefix,
            state,
            cgroup_root: mount_of("cgroup2").context("no cgroup v2 file system is mounted")?,
            keep: AtomicBool::new(false),
            processes: Mutex::new(Vec::new()),
        })
    }

    /// `lbt-<run>`: what every name of the run begins with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The directory for logs and notes.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// Makes the cgroup of a node.
    pub(crate) fn make_cgroup(&self, node: &str) -> anyhow::Result<PathBuf> {
        let path = self.cgroup_root.join(format!("{}-{node}", self.prefix));
        fs::create_dir(&path).with_context(|| format!("creating cgroup {}", path.display()))?;
        Ok(path)
    }

    /// Makes the bpffs directory of a node.
    pub(crate) fn make_bpffs(&self, node: &str) -> anyhow::Result<PathBuf> {
        let path = Path::new(BPFFS).join(format!("{}-{node}", self.prefix));
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    }

    /// Notes a child process, so that it is killed with the run, and by a later run if this one dies.
    pub(crate) fn register(&self, process: &Arc<Running>) -> anyhow::Result<()> {
        let pid = process.pid();
        let start = start_time(pid).unwrap_or_default();
        fs::write(self.state.join("processes").join(pid.to_string()), start.to_string())?;
        let mut processes = lock(&self.processes);
        processes.retain(|known| known.strong_count() > 0);
        processes.push(Arc::downgrade(process));
        Ok(())
    }

    /// Leaves everything standing: also later runs will not take it for a leftover.
    pub(crate) fn keep(&self) -> anyhow::Result<()> {
        fs::write(self.state.join("keep"), "")?;
        self.keep.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.keep.load(Ordering::Relaxed)
    }

    /// Kills the children and removes everything that carries the run's name.
    pub(crate) fn remove(&self) {
        for process in lock(&self.processes).drain(..).filter_map(|process| process.upgrade()) {
            process.kill();
        }
        remove_named(&self.prefix);
    }
}

/// Removes what runs whose owner is dead left behind, except runs that were told to keep standing. Returns the names of
/// the runs removed.
pub fn remove_leftovers() -> Vec<String> {
    remove_runs(|run| !run.state().join("keep").exists())
}

/// Removes also the runs that were kept, once their owner is dead. Returns the names of the runs removed.
pub fn remove_kept() -> Vec<String> {
    remove_runs(|_| true)
}

/// Removes everything this process has made, its child processes included: for the way out after a signal.
pub fn remove_own() {
    let own = format!("{PREFIX}{}_", std::process::id());
    for place in places() {
        for prefix in names(&place).iter().filter_map(|name| RunName::parse(name)) {
            if prefix.starts_with(&own) {
                remove_named(&prefix);
            }
        }
    }
}

fn remove_runs(wanted: impl Fn(&RunName) -> bool) -> Vec<String> {
    let runs: BTreeSet<String> =
        places().iter().flat_map(|place| names(place)).filter_map(|name| RunName::parse(&name)).collect();
    let mut removed = Vec::new();
    for prefix in runs {
        let run = RunName(prefix);
        if !run.owner_lives() && wanted(&run) {
            remove_named(&run.0);
            removed.push(run.0);
        }
    }
    removed
}

/// The name of a run: `lbt-<pid>_<start time>_<n>`.
struct RunName(String);

impl RunName {
    /// The run that a namespace, directory or cgroup of this name belongs to.
    fn parse(name: &str) -> Option<String> {
        let run = name.strip_prefix(PREFIX)?.split('-').next()?;
        let numbers: Vec<u64> = run.split('_').map(str::parse).collect::<Result<_, _>>().ok()?;
        (numbers.len() == 3).then(|| format!("{PREFIX}{run}"))
    }

    fn owner_lives(&self) -> bool {
        let mut parts = self.0.trim_start_matches(PREFIX).split('_');
        let mut number = || parts.next()?.parse::<u64>().ok();
        let (Some(pid), Some(start)) = (number(), number()) else { return true };
        u32::try_from(pid).is_ok_and(|pid| start_time(pid) == Some(start))
    }

    fn state(&self) -> PathBuf {
        Path::new(STATE_DIR).join(&self.0)
    }
}

/// All directories in which runs leave something.
fn places() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> =
        [NETNS_DIR, STATE_DIR, ETC_NETNS, BPFFS].iter().map(|place| PathBuf::from(*place)).collect();
    places.extend(mount_of("cgroup2"));
    places
}

/// What exists right now under the name of a run or of anything beginning with it; empty after a clean-up.
pub(crate) fn remains(prefix: &str) -> Vec<PathBuf> {
    let belongs = |name: &str| name == prefix || name.starts_with(&format!("{prefix}-"));
    places()
        .iter()
        .flat_map(|place| {
            names(place)
                .into_iter()
                .filter(|name| belongs(name))
                .map(|name| place.join(name))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Removes everything of one run. Nothing here can fail usefully: the next run tries again.
fn remove_named(prefix: &str) {
    let state = Path::new(STATE_DIR).join(prefix);
    for name in names(&state.join("processes")) {
        let note = state.join("processes").join(&name);
        let start = fs::read_to_string(note).ok().and_then(|start| start.parse().ok());
        if let (Ok(pid), Some(start)) = (name.parse(), start)
            && start_time(pid) == Some(start)
        {
            // It may end by itself in between: gone is what was wanted.
            let _gone = sys::kill(pid, libc::SIGKILL);
        }
    }
    for path in remains(prefix) {
        if path.starts_with(NETNS_DIR) {
            unlink(&path.file_name().unwrap_or_default().to_string_lossy());
        } else if path.starts_with(BPFFS) || path.starts_with(STATE_DIR) || path.starts_with(ETC_NETNS) {
            let _gone = fs::remove_dir_all(&path);
        } else {
            remove_cgroup(&path);
        }
    }
}

/// Removes a cgroup and those below it, waiting a moment for killed processes to leave.
fn remove_cgroup(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    for _ in 0..200 {
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                thread::sleep(Duration::from_millis(5));
            }
            _ => return,
        }
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// When a process started, in clock ticks since boot; `None` when there is no such process (or it is a zombie).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may contain anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Where a file system of this type is mounted.
fn mount_of(fs_type: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let target = fields.next()?;
        (fields.next()? == fs_type).then(|| PathBuf::from(target))
    })
}

fn ensure_bpffs() -> io::Result<()> {
    static MOUNTING: Mutex<()> = Mutex::new(());
    let guard = lock(&MOUNTING);
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mounted = mounts.lines().any(|line| line.contains(&format!(" {BPFFS} bpf ")));
    let result =
        if mounted { Ok(()) } else { sys::mount(c"bpf", &sys::c_path(Path::new(BPFFS))?, Some(c"bpf"), 0) };
    drop(guard);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_belong_to_runs() {
        assert_eq!(RunName::parse("lbt-12_345_0-n1-p-web").as_deref(), Some("lbt-12_345_0"));
        assert_eq!(RunName::parse("lbt-12_345_0").as_deref(), Some("lbt-12_345_0"));
        for foreign in ["lbt-mine", "lbt-12_345", "blue", "lbt-a_b_c-n1"] {
            assert_eq!(RunName::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn this_process_lives_and_a_different_start_time_is_another_process() {
        let (pid, start) = (std::process::id(), start_time(std::process::id()).unwrap());
        assert!(RunName(format!("lbt-{pid}_{start}_0")).owner_lives());
        assert!(!RunName(format!("lbt-{pid}_{}_0", start + 1)).owner_lives());
    }
}
