//! The archive: OCI's image layout, with the index that `docker load` wants beside it.
//!
//! `ctr images import` and `skopeo` read `index.json` (OCI image layout 1.0), `docker load` reads `manifest.json`; both
//! lead to the same blobs. The layer is compressed here, so that a registry that is pushed to keeps the digest.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Platform;
use super::origin::Origin;
use super::reference::Reference;

/// A file of the image, owned by root.
#[derive(Debug)]
pub(super) struct File {
    /// Path from the image's root, without a leading slash.
    pub(super) path: String,
    /// Permission bits.
    pub(super) mode: u32,
    /// What is in it.
    pub(super) content: Vec<u8>,
}

/// What an image is made of.
#[derive(Debug)]
pub(super) struct Contents {
    /// The program first.
    pub(super) files: Vec<File>,
    pub(super) platform: Platform,
    /// With its tag.
    pub(super) reference: Reference,
    pub(super) origin: Origin,
    pub(super) version: &'static str,
}

/// A finished image.
#[derive(Debug)]
pub(super) struct Image {
    /// The archive's bytes.
    pub(super) archive: Vec<u8>,
    /// Digest of the manifest, which is what a registry knows the image by.
    pub(super) digest: String,
}

/// Content that is named by its digest.
struct Blob {
    hex: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self { hex: hex(&bytes), bytes }
    }

    fn json(value: &Value) -> Result<Self> {
        Ok(Self::new(serde_json::to_vec(value)?))
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.hex)
    }

    /// OCI's content descriptor.
    fn descriptor(&self, media_type: &str) -> Value {
        json!({
            "mediaType": media_type,
            "digest": format!("sha256:{}", self.hex),
            "size": self.bytes.len(),
        })
    }
}

/// Packs an image.
pub(super) fn pack(contents: &Contents) -> Result<Image> {
    let epoch = contents.origin.epoch;
    let tar = layer(&contents.files, epoch)?;
    let config = Blob::json(&config(contents, &hex(&tar))?)?;
    let layer = Blob::new(gzip(&tar)?);
    let manifest = Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar+gzip")],
    }))?;
    let mut entry = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    entry["platform"] = json!({"architecture": contents.platform.architecture(), "os": "linux"});
    entry["annotations"] = json!({
        // containerd names the image by this one, others by the next.
        "io.containerd.image.name": contents.reference.full(),
        "org.opencontainers.image.ref.name": contents.reference.tag(),
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    let docker = json!([{
        "Config": config.path(),
        "RepoTags": [contents.reference.familiar()],
        "Layers": [layer.path()],
    }]);
    let digest = format!("sha256:{}", manifest.hex);
    let mut files = vec![
        file("oci-layout", serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?),
        file("index.json", serde_json::to_vec(&index)?),
        file("manifest.json", serde_json::to_vec(&docker)?),
    ];
    files.extend([config, layer, manifest].map(|blob| file(&blob.path(), blob.bytes)));
    Ok(Image { archive: self::layer(&files, epoch)?, digest })
}

fn file(path: &str, content: Vec<u8>) -> File {
    File { path: path.to_owned(), mode: 0o644, content }
}

fn config(contents: &Contents, diff: &str) -> Result<Value> {
    let created = contents.origin.created()?;
    Ok(json!({
        "architecture": contents.platform.architecture(),
        "os": "linux",
        "created": created,
        "config": {
            "User": "0:0",
            "Entrypoint": ["/lb-agent"],
            "WorkingDir": "/",
            // So that `kubectl exec … -- lb-agent services` finds it.
            "Env": ["PATH=/"],
            "Labels": {
                "org.opencontainers.image.title": "lb-agent",
                "org.opencontainers.image.description": "Kubernetes Service load balancing in the Linux kernel",
                "org.opencontainers.image.version": contents.version,
                "org.opencontainers.image.revision": contents.origin.revision,
                "org.opencontainers.image.created": created,
                "org.opencontainers.image.licenses": "Apache-2.0 AND GPL-2.0-only",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff}")]},
        "history": [{"created": created, "created_by": "cargo xtask image"}],
    }))
}

/// A tar archive of these files and the directories they lie in, sorted by path: the same files give the same bytes.
fn layer(files: &[File], epoch: u64) -> Result<Vec<u8>> {
    let mut entries: Vec<(String, Option<&File>)> = Vec::new();
    for file in files {
        let parents = file.path.match_indices('/').map(|(at, _)| (file.path[..=at].to_owned(), None));
        entries.extend(parents.chain([(file.path.clone(), Some(file))]));
    }
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    entries.dedup_by(|(one, _), (other, _)| one == other);
    let mut archive = tar::Builder::new(Vec::new());
    for (path, file) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_path(&path).with_context(|| format!("{path} does not fit into an archive"))?;
        header.set_entry_type(if file.is_some() {
            tar::EntryType::Regular
        } else {
            tar::EntryType::Directory
        });
        header.set_mode(file.map_or(0o755, |file| file.mode));
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(epoch);
        let content = file.map_or(&[][..], |file| &file.content);
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, content)?;
    }
    Ok(archive.into_inner()?)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    // Without a name and a time in its header.
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    fn contents() -> Contents {
        let file =
            |path: &str, mode, content: &str| File { path: path.into(), mode, content: content.into() };
        Contents {
            files: vec![file("lb-agent", 0o755, "program"), file("licenses/A", 0o644, "text")],
            platform: Platform::Arm64,
            reference: "lb-agent:1.2".parse().unwrap(),
            origin: Origin { revision: "abc".into(), epoch: 86_400 },
            version: "1.2",
        }
    }

    /// Content by path; every entry has to be root's and of the right time.
    fn unpack(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let mut found = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header();
            assert_eq!(
                (header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()),
                (0, 0, 86_400)
            );
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.insert(path, content);
        }
        found
    }

    #[test]
    fn both_indices_lead_to_the_same_blobs_and_every_blob_has_its_digest() {
        let image = pack(&contents()).unwrap();
        let files = unpack(&image.archive);
        let json = |path: &str| serde_json::from_slice::<Value>(&files[path]).unwrap();
        for (path, content) in files.iter().filter(|(path, _)| path.starts_with("blobs/sha256/")) {
            assert!(content.is_empty() && path.ends_with('/') || path.ends_with(&hex(content)), "{path}");
        }
        let blob = |descriptor: &Value| {
            let path = format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"));
            assert_eq!(descriptor["size"], files[&path].len());
            path
        };
        let entry = &json("index.json")["manifests"][0];
        assert_eq!(entry["digest"], image.digest.as_str());
        assert_eq!(entry["annotations"]["io.containerd.image.name"], "docker.io/library/lb-agent:1.2");
        let manifest = json(&blob(entry));
        let (config, layer) = (blob(&manifest["config"]), blob(&manifest["layers"][0]));
        let docker = json("manifest.json");
        assert_eq!(docker, json!([{"Config": config, "RepoTags": ["lb-agent:1.2"], "Layers": [layer]}]));

        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&files[&layer][..]).read_to_end(&mut tar).unwrap();
        let config = json(&config);
        assert_eq!(config["rootfs"]["diff_ids"], json!([format!("sha256:{}", hex(&tar))]));
        assert_eq!(
            (&config["architecture"], &config["created"]),
            (&json!("arm64"), &json!("1970-01-02T00:00:00Z"))
        );
        let layer = unpack(&tar);
        assert_eq!(layer.keys().collect::<Vec<_>>(), ["lb-agent", "licenses/", "licenses/A"]);
        assert_eq!(layer["lb-agent"], b"program");
    }

    #[test]
    fn the_order_of_files_does_not_matter() {
        let (one, mut other) = (contents(), contents());
        other.files.reverse();
        assert_eq!(pack(&one).unwrap().archive, pack(&other).unwrap().archive);
    }
}
