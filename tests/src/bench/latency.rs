//! `latency`: requests and connections through a Service, against no Service, iptables and nftables.

use anyhow::{Result, bail};

use super::Options;
use super::report::Report;

/// Measures.
///
/// # Errors
/// Always, until there is something to measure.
pub fn run(_options: &Options) -> Result<Report> {
    bail!("`latency` measures nothing yet")
}
