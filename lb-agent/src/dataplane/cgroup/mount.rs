//! Which cgroup the programs are attached to.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::error::{Error, Result};
use super::super::sys;

/// Where the hybrid layout has cgroup v2, below the directory of the others.
const HYBRID: &str = "unified";
/// Id of the root of the cgroup hierarchy.
const ROOT: u64 = 1;

/// A directory of the cgroup v2 hierarchy, opened.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: File,
    id: u64,
}

impl Cgroup {
    /// Opens a cgroup.
    ///
    /// # Errors
    /// [`Error::Path`] when it cannot be opened, [`Error::NotCgroup`] when it is no cgroup v2 directory.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::path("open the cgroup", path, source);
        let directory = File::open(path).map_err(failed)?;
        let metadata = directory.metadata().map_err(failed)?;
        if !metadata.is_dir() || !sys::is_cgroup2(path).map_err(failed)? {
            return Err(Error::NotCgroup(path.to_owned()));
        }
        // A directory's inode number is the cgroup's id, where inode numbers have 64 bits.
        Ok(Self { path: path.to_owned(), directory, id: metadata.ino() })
    }

    /// Opens the cgroup that somebody means by a directory: itself, or in the hybrid layout of systemd, where cgroups of
    /// version 1 lie in `/sys/fs/cgroup`, the directory `unified` in it.
    ///
    /// # Errors
    /// Those of [`Cgroup::open`].
    pub fn named(path: &Path) -> Result<Self> {
        match Self::open(path) {
            Err(error @ Error::NotCgroup(_)) => Self::open(&path.join(HYBRID)).map_err(|_| error),
            other => other,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel's number of it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// True for the root of the hierarchy, which every process is below. What a container sees as the root is not.
    pub fn is_root(&self) -> bool {
        self.id == ROOT
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// The cgroup v2 file system of this machine, wherever it is mounted; one whose root is that of the hierarchy goes
/// before one that only shows a part of it.
///
/// # Errors
/// [`Error::NoCgroup`] when there is none, and those of [`Cgroup::open`].
pub fn find_cgroup() -> Result<Cgroup> {
    const MOUNTS: &str = "/proc/self/mounts";
    let mounts =
        fs::read_to_string(MOUNTS).map_err(|source| Error::path("read", Path::new(MOUNTS), source))?;
    let mut first = None;
    for path in mounts_of(&mounts) {
        match Cgroup::open(&path) {
            Ok(cgroup) if cgroup.is_root() => return Ok(cgroup),
            other => {
                first.get_or_insert(other);
            }
        }
    }
    first.unwrap_or(Err(Error::NoCgroup))
}

/// Where file systems of type `cgroup2` are mounted, in a text like that of `/proc/self/mounts`.
fn mounts_of(mounts: &str) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (path, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(unescaped(path)))
    })
}

/// Blanks, tabs, line feeds and backslashes stand as three octal digits in the file (`mangle`, fs/proc_namespace.c).
fn unescaped(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (from, to)| path.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_v2_is_found_wherever_it_is_mounted() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\nnone /run/a\\040b cgroup2 rw 0 0\n";
        let found: Vec<PathBuf> = mounts_of(hybrid).collect();
        assert_eq!(found, [Path::new("/sys/fs/cgroup/unified"), Path::new("/run/a b")]);
        assert_eq!(mounts_of("proc /proc proc rw 0 0\n").count(), 0);
    }

    #[test]
    fn a_directory_of_another_file_system_is_no_cgroup() {
        let error = Cgroup::open(Path::new("/proc")).unwrap_err();
        assert!(error.to_string().contains("/proc") && error.is_of_configuration(), "{error}");
    }
}
