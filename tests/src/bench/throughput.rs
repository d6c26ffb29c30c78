//! `throughput`: bytes a second through every way of serving, frames a second through the XDP program, and what a second CPU adds.

mod bulk;
mod cores;
mod frames;

use anyhow::{Result, ensure};

use super::Options;
use super::report::Report;

/// Measures.
///
/// # Errors
/// Not root, something is missing, or what is sent does not arrive.
pub fn run(options: &Options) -> Result<Report> {
    let rounds = options.rounds(11, 3);
    let mut rows = bulk::measure(options, rounds)?;
    if options.wants(frames::NAME) {
        rows.extend(frames::measure(options, rounds)?);
    }
    if options.wants(cores::NAME) {
        rows.extend(cores::measure(options, rounds)?);
    }
    ensure!(!rows.is_empty(), "no case has {:?} in its name", options.filter);
    Ok(Report::new("throughput", rounds, rows))
}
