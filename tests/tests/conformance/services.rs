//! `test/e2e/network/service.go`: "Services".

#[path = "services/basic.rs"]
mod basic;

use crate::prelude::*;

/// The titles.
pub(crate) fn groups() -> Vec<Group> {
    vec![Group::new("service.go", "Services", basic::titles())]
}
