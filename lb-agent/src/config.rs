//! Configuration that is no flag of its own: kube-proxy's configuration file, accepted as it is (S-63), and what is in
//! effect after all.
//!
//! A field of the file that means something here becomes the default of the flag that says the same, so that a flag or
//! its environment variable wins over the file, as with kube-proxy's own exceptions (`--hostname-override`), and every
//! value goes through the same checks wherever it comes from.

mod document;
mod duration;
mod effective;
mod fields;
mod settings;

pub use effective::{Effective, Origin};
pub use fields::{FIELDS, Field, Kind, Meaning};
pub use settings::{ProxyFile, Setting};

use std::path::{Path, PathBuf};

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("configuration file {}: {reason}", path.display())]
pub struct ConfigError {
    path: PathBuf,
    reason: String,
}

/// Reads a file of kind `KubeProxyConfiguration` (`kubeproxy.config.k8s.io/v1alpha1`), YAML or JSON.
///
/// # Errors
/// It cannot be read, is no such file, has a field that kube-proxy does not know, or a value of the wrong type; every
/// such field is named with its path.
pub fn read(path: &Path) -> Result<ProxyFile, ConfigError> {
    let failed = |reason: String| ConfigError { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    parse(&text).map_err(failed)
}

/// Parses the text of such a file.
///
/// # Errors
/// What is wrong with it, as [`read`] says.
pub fn parse(text: &str) -> Result<ProxyFile, String> {
    settings::settings(&document::given(text)?)
}

#[cfg(test)]
#[path = "config/config_tests.rs"]
mod tests;
