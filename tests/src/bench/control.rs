//! `control`: filling and changing the tables, memory and CPU of the agent.

use anyhow::{Result, bail};

use super::Options;
use super::report::Report;

/// Measures.
///
/// # Errors
/// Always, until there is something to measure.
pub fn run(_options: &Options) -> Result<Report> {
    bail!("`control` measures nothing yet")
}
