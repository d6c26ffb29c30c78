//! Where things lie below `--bpf-root`: `maps/<NAME>`, `links/<interface index>-<program>`,
//! `xdp/<interface index>-<place>` and `cgroup/<program>`.
//!
//! Programs are not pinned: links (or traffic control filters) hold them, and they hold the maps.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::sys;

/// The directory tree of one agent's pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
}

/// The default of `--bpf-root`.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf/lb-agent";
/// Where bpffs is mounted by convention.
const BPFFS: &str = "/sys/fs/bpf";

impl Pins {
    /// The tree below `root`, which need not exist.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The directory everything lies in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Directory of the maps.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Where the map of that name is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Directory of the links.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Directory of the links of the XDP program.
    pub fn xdp(&self) -> PathBuf {
        self.root.join("xdp")
    }

    /// Directory of the links to a cgroup.
    pub fn sockets(&self) -> PathBuf {
        self.root.join("cgroup")
    }

    /// Makes the directories, and mounts bpffs at `/sys/fs/bpf` when the root lies there and nothing is mounted.
    ///
    /// # Errors
    /// [`Error::NotBpffs`] when the root is on another file system, [`Error::Path`] when a step is refused.
    pub fn create(&self) -> Result<()> {
        let base = Path::new(BPFFS);
        if self.root.starts_with(base) && base.is_dir() && !on_bpffs(base)? {
            sys::mount_bpffs(base)
                .map_err(|source| Error::path("mount a bpf file system at", base, source))?;
            tracing::info!("mounted a bpf file system at {BPFFS}");
        }
        let existing = self.root.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        if !on_bpffs(existing)? {
            return Err(Error::NotBpffs(existing.to_owned()));
        }
        for directory in [self.maps(), self.links(), self.xdp(), self.sockets()] {
            fs::create_dir_all(&directory)
                .map_err(|source| Error::path("create the directory", &directory, source))?;
        }
        Ok(())
    }

    /// File names in a directory, sorted; none when the directory is missing.
    pub(crate) fn list(directory: &Path) -> Result<Vec<String>> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(Error::path("list", directory, source)),
        };
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Removes the pins of all maps; what still uses a map keeps it alive.
    ///
    /// # Errors
    /// [`Error::Path`] when a pin cannot be removed.
    pub fn remove_maps(&self) -> Result<Vec<String>> {
        let names = Self::list(&self.maps())?;
        for name in &names {
            remove(&self.map(name))?;
        }
        Ok(names)
    }

    /// Removes the directories themselves, which have to be empty.
    ///
    /// # Errors
    /// [`Error::Path`] when something is left in them.
    pub fn remove_directories(&self) -> Result<()> {
        for directory in [self.maps(), self.links(), self.xdp(), self.sockets(), self.root.clone()] {
            match fs::remove_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::path("remove the directory", &directory, error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Removes a pin; that it is gone already is no error.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::path("remove", path, error)),
        _ => Ok(()),
    }
}

fn on_bpffs(path: &Path) -> Result<bool> {
    sys::is_bpffs(path).map_err(|source| Error::path("examine the file system of", path, source))
}
