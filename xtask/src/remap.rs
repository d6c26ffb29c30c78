//! Source paths that are the same on every machine: what compilers write into objects must not depend on where a clone,
//! cargo's sources and the toolchain lie.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::compiler::{self, Compiler};
use crate::workspace::Workspace;

/// The flags of rustc that put names in the place of this machine's directories.
///
/// `library` is the source of the standard library, if it lies elsewhere than in the compiler's own directory. It gets the
/// name under which the compiler knows it where the source is not installed.
///
/// # Errors
/// The compiler does not say where it lives, or a path is no Unicode.
pub(crate) fn flags(
    workspace: &Workspace,
    compiler: &Compiler,
    library: Option<&Path>,
) -> Result<Vec<String>> {
    // The compiler takes the last prefix that fits: more special ones come later.
    let standard = format!("/rustc/{}/library", compiler.commit);
    let mut places = vec![(workspace.root().to_path_buf(), "."), (cargo_home()?, "/cargo")];
    places.push((compiler::sysroot_library()?, &standard));
    places.extend(library.map(|library| (library.to_path_buf(), standard.as_str())));
    let flag = |(place, name): (PathBuf, &str)| {
        let place = place.to_str().with_context(|| format!("{} is no Unicode", place.display()))?;
        Ok(format!("--remap-path-prefix={place}={name}"))
    };
    places.into_iter().map(flag).collect()
}

/// Where cargo keeps the sources of dependencies.
fn cargo_home() -> Result<PathBuf> {
    let named =
        |name: &str| env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
    named("CARGO_HOME")
        .or_else(|| named("HOME").map(|home| home.join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set: cargo's sources cannot be found")
}
