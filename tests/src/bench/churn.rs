//! `churn`: endpoint changes under load.

use anyhow::{Result, bail};

use super::Options;
use super::report::Report;

/// Measures.
///
/// # Errors
/// Always, until there is something to measure.
pub fn run(_options: &Options) -> Result<Report> {
    bail!("`churn` measures nothing yet")
}
