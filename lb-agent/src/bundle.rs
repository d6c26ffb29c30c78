//! `lb-agent support-bundle`: what a bug report needs, in one file. Whatever cannot be read is said in it and left out; no
//! trouble of a node keeps it from being made.
//!
//! No secrets: no environment of any process, no kubeconfig, no token, nothing of packets but their addresses.

mod collect;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use crate::status::Look;

/// What to collect, and where to.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// How the node is looked at.
    pub look: Look,
    /// Object to load instead of the embedded one, for the checks.
    pub object: Option<PathBuf>,
    /// Files that are added: the agent's log, for one.
    pub add: Vec<PathBuf>,
    /// Most connections that are listed.
    pub connections: usize,
}

/// A file of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Its name.
    pub name: String,
    /// What it is.
    pub what: &'static str,
    /// Its length in bytes.
    pub bytes: usize,
    #[serde(skip)]
    content: Vec<u8>,
}

/// Something that could not be collected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The file it would have been.
    pub name: String,
    /// Why it is not there.
    pub why: String,
}

/// Everything that was collected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// The files.
    pub files: Vec<Item>,
    /// What is missing.
    pub missing: Vec<Missing>,
}

impl Collected {
    fn add(&mut self, name: &str, what: &'static str, content: anyhow::Result<Vec<u8>>) {
        match content {
            Ok(content) => {
                self.files.push(Item { name: name.to_owned(), what, bytes: content.len(), content });
            }
            Err(error) => self.missing.push(Missing { name: name.to_owned(), why: format!("{error:#}") }),
        }
    }

    fn add_json<T: Serialize>(&mut self, name: &str, what: &'static str, value: anyhow::Result<T>) {
        self.add(name, what, value.and_then(|value| Ok(serde_json::to_vec_pretty(&value)?)));
    }

    /// What is in it, for who opens it.
    fn contents(&self) -> String {
        let mut text = format!(
            "lb-agent {} support bundle of {}\n\n\
             It holds addresses, names of Services and devices, and the flags of the agent; no environment, no kubeconfig, \
             no\ntoken, and nothing of any packet's content. Look through it before you give it away. The agent's log is \
             not in it,\nunless it was added with --add: `kubectl -n kube-system logs` has it.\n\n",
            env!("CARGO_PKG_VERSION"),
            jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC"),
        );
        for item in &self.files {
            text.push_str(&format!("{:24} {}\n", item.name, item.what));
        }
        for missing in &self.missing {
            text.push_str(&format!("{:24} MISSING: {}\n", missing.name, missing.why));
        }
        text
    }
}

/// Collects.
pub async fn collect(bundle: &Bundle) -> Collected {
    collect::all(bundle).await
}

/// Writes what was collected as a compressed archive, all of it below one directory.
///
/// # Errors
/// It cannot be written.
pub fn write(collected: &Collected, directory: &str, to: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(to, Compression::default()));
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
    let contents = collected.contents().into_bytes();
    let files = collected.files.iter().map(|item| (item.name.as_str(), &item.content));
    for (name, content) in std::iter::once(("README.txt", &contents)).chain(files) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(now);
        archive.append_data(&mut header, format!("{directory}/{name}"), content.as_slice())?;
    }
    archive.into_inner()?.finish()?.flush()
}

/// Makes the file of an archive, which must not be there yet, for its owner's eyes only.
///
/// # Errors
/// It cannot be made.
pub fn create(path: &Path) -> anyhow::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    options.open(path).with_context(|| format!("making {} (name another file with --file)", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn an_archive_has_what_was_collected_and_says_what_was_not() {
        let mut collected = Collected::default();
        collected.add("a.txt", "a letter", Ok(b"a".to_vec()));
        collected.add("b.txt", "another", Err(anyhow::anyhow!("no b")));
        let mut bytes = Vec::new();
        write(&collected, "bundle", &mut bytes).unwrap();
        let mut archive = tar::Archive::new(GzDecoder::new(bytes.as_slice()));
        let files: Vec<(String, String)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (entry.path().unwrap().display().to_string(), text)
            })
            .collect();
        assert_eq!(files[0].0, "bundle/README.txt");
        assert!(files[0].1.contains("a letter") && files[0].1.contains("MISSING: no b"), "{}", files[0].1);
        assert_eq!(files[1], ("bundle/a.txt".into(), "a".into()));
        assert_eq!(files.len(), 2);
    }
}
