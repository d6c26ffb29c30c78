//! Network namespaces other than the agent's own, found by the cookies that programs know them by.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use super::super::sys;

/// Where container runtimes and `ip netns` leave namespaces.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// Paths of namespaces, by cookie. A path is only a hint: it is compared when it is used. Nothing keeps a namespace
/// alive.
#[derive(Debug, Default)]
pub(super) struct Namespaces(BTreeMap<u64, PathBuf>);

impl Namespaces {
    /// Does something in the namespace of that cookie; `None` when it cannot be found or entered.
    pub(super) fn within<T: Send>(
        &mut self,
        cookie: u64,
        work: impl Fn() -> io::Result<T> + Send + Sync,
    ) -> io::Result<Option<T>> {
        // A thread of its own: it stays in the namespace it entered last.
        let visiting = || {
            let known = self.0.get(&cookie).is_some_and(|path| enter(path, cookie));
            if known || (self.look() && self.0.get(&cookie).is_some_and(|path| enter(path, cookie))) {
                work().map(Some)
            } else {
                Ok(None)
            }
        };
        thread::scope(|scope| scope.spawn(visiting).join())
            .unwrap_or_else(|_| Err(io::Error::other("visiting a network namespace broke off")))
    }

    /// Looks for namespaces: those with a name, and those of processes, as far as they can be seen.
    fn look(&mut self) -> bool {
        self.0.clear();
        let named = NAMED.iter().flat_map(|place| entries(Path::new(place)));
        let of_processes = entries(Path::new("/proc"))
            .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit()))
            .map(|path| path.join("ns/net"));
        let mut seen = BTreeSet::new();
        for path in named.chain(of_processes) {
            // Many processes share a namespace; the inode number of the file says which.
            let Some(number) = fs::metadata(&path).ok().map(|metadata| metadata.ino()) else { continue };
            if seen.insert(number)
                && set(&path).is_ok()
                && let Ok(Some(cookie)) = sys::netns_cookie()
            {
                self.0.entry(cookie).or_insert(path);
            }
        }
        true
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Enters the namespace at a path. False when that does not work, or when it is not the one with that cookie.
fn enter(path: &Path, cookie: u64) -> bool {
    set(path).is_ok() && matches!(sys::netns_cookie(), Ok(Some(entered)) if entered == cookie)
}

fn set(path: &Path) -> io::Result<()> {
    let namespace = File::open(path)?;
    // SAFETY: a call on an open descriptor; it changes the calling thread alone.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
