//! Puts the datapath object where the agent embeds it from: `$OUT_DIR/lb-ebpf.o`.
//!
//! `LB_EBPF_OBJECT` names the object; without it, what `cargo xtask build-ebpf` left in `target/bpf` is taken, and
//! where that is missing an empty file, so that host crates build and test without any BPF toolchain. An agent
//! built that way says so when it is asked to load the datapath.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

const OVERRIDE: &str = "LB_EBPF_OBJECT";
const NAME: &str = "lb-ebpf.o";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let object = match env::var_os(OVERRIDE).filter(|path| !path.is_empty()) {
        Some(path) => named(Path::new(&path))?,
        None => built(&variable("CARGO_MANIFEST_DIR")?.join("../target/bpf"))?,
    };
    fs::write(variable("OUT_DIR")?.join(NAME), object)?;
    Ok(())
}

/// The object the environment asks for; that it is missing is an error.
fn named(path: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", path.display());
    fs::read(path).map_err(|error| format!("{OVERRIDE}={}: {error}", path.display()).into())
}

/// The object of this clone, or nothing when it has not been built yet.
///
/// Watched is the directory, made when missing: cargo takes a missing file for a changed one and would build the
/// agent anew each time, while a file that appears in a directory changes the directory.
fn built(directory: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    let object = directory.join(NAME);
    // In a read-only tree the directory cannot be made; building anew each time is then the lesser evil.
    let watched = if fs::create_dir_all(directory).is_ok() { directory } else { &object };
    println!("cargo::rerun-if-changed={}", watched.display());
    if object.try_exists()? { Ok(fs::read(&object)?) } else { Ok(Vec::new()) }
}

fn variable(name: &str) -> Result<PathBuf, Box<dyn Error>> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("cargo sets no {name}").into())
}
