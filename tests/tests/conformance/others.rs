//! (to come)

use crate::prelude::*;

/// The titles.
pub(crate) fn groups() -> Vec<Group> {
    Vec::new()
}
