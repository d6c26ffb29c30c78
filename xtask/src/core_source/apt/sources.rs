//! The Debian mirrors this machine already uses, from its apt sources in either format.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Names of Debian's suites that tell a Debian mirror from a third party's archive.
const DEBIAN_SUITES: &[&str] =
    &["stable", "testing", "unstable", "oldstable", "sid", "bullseye", "bookworm", "trixie", "forky", "duke"];

/// An archive that carries Debian itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    /// As written in the sources, so also `mirror+file:` and the like.
    pub(super) uri: String,
    /// A file of keys, when the source names one.
    pub(super) signed_by: Option<String>,
}

/// Reads all sources of the machine; every mirror comes once, in the order of the files.
pub(super) fn mirrors() -> Result<Vec<Mirror>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(directory(Path::new("/etc/apt/sources.list.d"))?);
    let mut mirrors: Vec<Mirror> = Vec::new();
    for file in files.into_iter().filter(|file| file.is_file()) {
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let found = match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => one_line(&text),
            Some("sources") => deb822(&text),
            _ => Vec::new(),
        };
        for mirror in found {
            if mirrors.iter().all(|known| known.uri != mirror.uri) {
                mirrors.push(mirror);
            }
        }
    }
    Ok(mirrors)
}

fn directory(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(dir)?.collect::<std::io::Result<Vec<_>>>()?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.sort();
    Ok(files)
}

/// Parses the format of `sources.list`: `deb [options] uri suite component…`.
fn one_line(text: &str) -> Vec<Mirror> {
    text.lines().filter_map(one_line_entry).collect()
}

fn one_line_entry(line: &str) -> Option<Mirror> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t', '[']) {
        return None;
    }
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    (is_debian(suite) && words.any(|component| component == "main"))
        .then(|| Mirror { uri: uri.to_owned(), signed_by: signed_by.and_then(key_file) })
}

/// Parses stanzas of `Field: value` lines with continuation lines, separated by blank lines.
fn deb822(text: &str) -> Vec<Mirror> {
    let mut stanzas: Vec<Vec<(String, String)>> = vec![Vec::new()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some(stanza) = stanzas.last_mut() else { break };
        if line.trim().is_empty() {
            if !stanza.is_empty() {
                stanzas.push(Vec::new());
            }
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            stanza.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    stanzas.iter().flat_map(|stanza| deb822_stanza(stanza)).collect()
}

fn deb822_stanza(stanza: &[(String, String)]) -> Vec<Mirror> {
    let field =
        |name: &str| stanza.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value.as_str());
    let has = |name: &str, word: &str| field(name).split_whitespace().any(|found| found == word);
    let disabled = matches!(field("enabled").to_ascii_lowercase().as_str(), "no" | "false" | "off" | "0");
    let wanted = !disabled
        && has("types", "deb")
        && has("components", "main")
        && field("suites").split_whitespace().any(is_debian);
    if !wanted {
        return Vec::new();
    }
    let signed_by = key_file(field("signed-by"));
    let mirror = |uri: &str| Mirror { uri: uri.to_owned(), signed_by: signed_by.clone() };
    field("uris").split_whitespace().map(mirror).collect()
}

/// Whether the suite is one of Debian's main archive (not the security archive, which has no backports).
fn is_debian(suite: &str) -> bool {
    let name = suite.split('/').next().unwrap_or(suite);
    let name = ["-updates", "-backports"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    DEBIAN_SUITES.contains(&name)
}

/// A `Signed-By` may also hold the key itself or fingerprints; only a file can be handed on.
fn key_file(value: &str) -> Option<String> {
    (value.starts_with('/') && !value.contains(char::is_whitespace)).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(uri: &str, signed_by: Option<&str>) -> Mirror {
        Mirror { uri: uri.into(), signed_by: signed_by.map(Into::into) }
    }

    #[test]
    fn deb822_stanzas() {
        let text = "# comment\nTypes: deb\n# http://snapshot.example/archive\nURIs: http://mirror.example/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian.gpg\n\n\n\
                    Types: deb deb-src\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\nComponents: main\n\n\
                    Types: deb\nURIs: https://other.example/x\nSuites: nodistro\nComponents: main\n";
        assert_eq!(
            deb822(text),
            [mirror("http://mirror.example/debian", Some("/usr/share/keyrings/debian.gpg"))]
        );
    }

    #[test]
    fn deb822_continuation_lines_disabled_stanzas_and_inline_keys() {
        let text = "types: deb\nuris: http://a.example/debian\n http://b.example/debian\nsuites: sid\n\
                    components: main contrib\nsigned-by:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n\n\
                    Types: deb\nURIs: http://c.example/debian\nSuites: sid\nComponents: main\nEnabled: no\n\n\
                    Types: deb-src\nURIs: http://d.example/debian\nSuites: sid\nComponents: main\n";
        assert_eq!(
            deb822(text),
            [mirror("http://a.example/debian", None), mirror("http://b.example/debian", None)]
        );
    }

    #[test]
    fn one_line_entries() {
        let text = "# deb http://off.example/debian sid main\n\
                    deb http://a.example/debian bookworm main contrib # comment\n\
                    deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] mirror+file:/etc/apt/mirrors.txt trixie-backports main\n\
                    deb-src http://b.example/debian bookworm main\n\
                    deb http://c.example/debian-security bookworm-security main\n\
                    deb http://d.example/apt ./\n\
                    deb http://e.example/debian bookworm contrib\n\
                    deb https://f.example/apt cloud-bookworm main\n";
        assert_eq!(
            one_line(text),
            [
                mirror("http://a.example/debian", None),
                mirror("mirror+file:/etc/apt/mirrors.txt", Some("/usr/share/keyrings/k.gpg")),
            ]
        );
    }

    #[test]
    fn nonsense_is_no_mirror() {
        for text in ["", "deb", "deb [", "deb [x] ", "debris http://a sid main", "Suites: sid\n", " \n:\n"] {
            assert!(one_line(text).is_empty(), "{text:?}");
            assert!(deb822(text).is_empty(), "{text:?}");
        }
    }
}
