//! Debian's package `rust-src` through apt, with a configuration, lists and cache of its own under `target/`:
//! neither root nor any change to the system's apt is needed.

mod sources;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use self::sources::Mirror;
use crate::{process, progress};

const PACKAGE: &str = "rust-src";

/// The suites that carry current Rust releases: the backports first, their lists are far smaller.
const SUITES: &[&str] = &["trixie-backports", "sid"];

/// The keys of the Debian archive, for sources that do not name theirs.
const DEBIAN_KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Downloads the package of that release and unpacks its `library` to `destination`.
pub(super) fn fetch(work: &Path, release: &str, destination: &Path) -> Result<()> {
    for tool in ["apt-get", "apt-cache", "dpkg-deb", "tar"] {
        if !process::on_path(tool) {
            bail!("this machine has no {tool}");
        }
    }
    let mirrors = sources::mirrors()?;
    if mirrors.is_empty() {
        bail!("the apt sources of this machine name no Debian mirror");
    }
    let mut offered = Vec::new();
    for suite in SUITES {
        let apt = PrivateApt::create(&work.join("apt").join(suite), &mirrors, suite)?;
        let what = format!("Debian's package list of {suite}");
        let versions =
            progress::step(what, "to find rust-src of this compiler's version", || apt.versions())?;
        if let Some(version) = versions.iter().find(|version| upstream(version) == release) {
            let what = format!("Debian's {PACKAGE} {version}, 45 MB");
            progress::step(what, super::WHY, || {
                let package = apt.download(version)?;
                super::unpack(&package, release, destination)
            })?;
            return fs::remove_dir_all(work.join("apt")).context("remove apt's lists and the package");
        }
        offered.extend(versions);
    }
    offered.sort();
    offered.dedup();
    bail!(
        "{} offers {PACKAGE} in {}, but not {release}",
        mirrors.iter().map(|mirror| mirror.uri.as_str()).collect::<Vec<_>>().join(", "),
        if offered.is_empty() { "no version".to_owned() } else { format!("versions {}", offered.join(", ")) }
    )
}

/// The Rust release a Debian version carries: `1.95.0` of `1.95.0+dfsg1-2~bpo13+1`.
fn upstream(version: &str) -> &str {
    let end = version.find(['+', '-', '~']).unwrap_or(version.len());
    &version[..end]
}

/// The versions in what `apt-cache madison` prints, newest first as it prints them.
fn parse_madison(text: &str) -> Vec<String> {
    let version = |line: &str| {
        let mut columns = line.split('|').map(str::trim);
        (columns.next()? == PACKAGE).then(|| columns.next().map(str::to_owned))?
    };
    text.lines().filter_map(version).collect()
}

/// An apt whose state lies in one directory of ours.
struct PrivateApt {
    dir: PathBuf,
    config: PathBuf,
}

impl PrivateApt {
    fn create(dir: &Path, mirrors: &[Mirror], suite: &str) -> Result<Self> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        let mut list = String::new();
        for mirror in mirrors {
            let keys = mirror.signed_by.clone().unwrap_or_else(|| DEBIAN_KEYS.into());
            let option =
                if Path::new(&keys).is_file() { format!("[signed-by={keys}] ") } else { String::new() };
            writeln!(list, "deb {option}{} {suite} main", mirror.uri)?;
        }
        fs::write(dir.join("sources.list"), list)?;
        let config = dir.join("apt.conf");
        fs::write(&config, Self::config(dir))?;
        Ok(Self { dir: dir.to_path_buf(), config })
    }

    /// Read after the machine's own configuration, so that its proxies hold and its hooks can be switched off.
    fn config(dir: &Path) -> String {
        let dir = dir.display();
        format!(
            "Dir::Etc::sourcelist \"{dir}/sources.list\";\n\
             Dir::Etc::sourceparts \"/dev/null\";\n\
             Dir::State::Lists \"{dir}/lists\";\n\
             Dir::Cache \"{dir}/cache\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"2\";\n\
             Acquire::http::Timeout \"30\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
             Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";\n\
             APT::Sandbox::User \"\";\n\
             #clear APT::Update::Pre-Invoke;\n\
             #clear APT::Update::Post-Invoke;\n\
             #clear APT::Update::Post-Invoke-Success;\n"
        )
    }

    /// Loads the list of the suite and returns the versions it offers.
    ///
    /// A mirror without the suite makes the update fail; another one may have it, so only an update that
    /// brings nothing at all counts as failure.
    fn versions(&self) -> Result<Vec<String>> {
        let update = process::output(self.command("apt-get").arg("update"))?;
        let versions =
            parse_madison(&process::capture(self.command("apt-cache").args(["madison", PACKAGE]))?);
        if versions.is_empty() && !update.status.success() {
            bail!("apt-get update failed\n{}", process::tail(&update));
        }
        Ok(versions)
    }

    /// Downloads that version and returns the package's path.
    fn download(&self, version: &str) -> Result<PathBuf> {
        let wanted = format!("{PACKAGE}={version}");
        process::capture(self.command("apt-get").args(["download", &wanted]).current_dir(&self.dir))?;
        let entries = fs::read_dir(&self.dir)?.collect::<std::io::Result<Vec<_>>>()?;
        entries
            .into_iter()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get download {wanted} left no package"))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.config).env("LC_ALL", "C");
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_release_of_debian_versions() {
        for (version, release) in [
            ("1.95.0+dfsg1-2~bpo13+1", "1.95.0"),
            ("1.95.0+dfsg1-2", "1.95.0"),
            ("1.63.0-2", "1.63.0"),
            ("1.95.0~beta.3+dfsg1-1", "1.95.0"),
            ("1.95.0", "1.95.0"),
        ] {
            assert_eq!(upstream(version), release, "{version}");
        }
    }

    #[test]
    fn madison_lists_every_version() {
        let text = "  rust-src | 1.96.1+dfsg1-1 | http://mirror.example/debian sid/main amd64 Packages\n  \
                    rust-src | 1.95.0+dfsg1-2~bpo13+1 | http://mirror.example/debian trixie-backports/main amd64 Packages\n  \
                    rustc | 1.95.0+dfsg1-2 | http://mirror.example/debian sid/main Sources\n";
        assert_eq!(parse_madison(text), ["1.96.1+dfsg1-1", "1.95.0+dfsg1-2~bpo13+1"]);
        assert!(parse_madison("").is_empty());
    }
}
