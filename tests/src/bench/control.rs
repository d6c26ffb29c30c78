//! `control`: filling and changing the tables, memory and CPU of the agent.
//!
//! The library is measured in this process, from objects as the watches hand them over to the last store into the kernel's
//! tables: index, planner and applier. What a whole agent needs is measured on a node of the lab, with the lab's API server.

mod agent;
pub mod fill;
mod instructions;
mod rules;
mod tables;
pub mod world;

use anyhow::Result;

use super::report::{Report, Row};
use super::{Options, progress};
use world::World;

/// Measures.
///
/// # Errors
/// A program that it needs is missing, or what is measured does not do what it should.
pub fn run(options: &Options) -> Result<Report> {
    let rounds = options.rounds(5, 2);
    let mut rows = Vec::new();
    let mut part = |name: &str, measure: &mut dyn FnMut() -> Result<Vec<Row>>| -> Result<()> {
        if options.wants(name) {
            progress(format_args!("control: {name}"));
            rows.extend(measure()?);
        }
        Ok(())
    };
    part("maglev tables", &mut || Ok(fill::maglev_tables(rounds * 20)))?;
    part("fill", &mut || fill::rows(rounds))?;
    part("instructions", &mut || instructions::rows(World::MANY))?;
    part("agent", &mut || agent::rows(options.quick))?;
    Ok(Report::new("control", rounds, rows))
}
