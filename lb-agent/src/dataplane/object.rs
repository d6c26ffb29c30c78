//! Where the datapath object comes from: this binary, or a file named on the command line.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use super::error::{Error, Result};

/// The object that was built with this agent; empty when there was none (see `build.rs`).
static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf.o"));

/// The object to load: that of `path`, else the embedded one.
///
/// # Errors
/// [`Error::ReadObject`] for a file that cannot be read, [`Error::NoObject`] when there is neither.
pub(super) fn bytes(path: Option<&Path>) -> Result<Cow<'static, [u8]>> {
    match path {
        Some(path) => fs::read(path)
            .map(Cow::Owned)
            .map_err(|source| Error::ReadObject { path: path.to_owned(), source }),
        None if EMBEDDED.is_empty() => Err(Error::NoObject),
        None => Ok(Cow::Borrowed(EMBEDDED)),
    }
}

/// True when this agent carries an object.
pub fn is_embedded() -> bool {
    !EMBEDDED.is_empty()
}
