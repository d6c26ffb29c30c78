//! Clock-free: how many instructions an endpoint change takes, in a small world and in a large one.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::world::World;
use crate::bench::report::{Row, ratios};

/// The program that is counted.
const PROGRAM: &str = "lb-changes";
/// Changes more in the second of two runs, whose difference they are.
const CHANGES: u32 = 500;

/// What [`PROGRAM`] says of its memory.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Memory {
    /// Bytes of its own before anything was known.
    before: u64,
    /// Bytes with everything in the tables.
    after: u64,
}

/// Instructions and memory of the library.
///
/// # Errors
/// When `valgrind` or the program is missing.
pub(super) fn rows(many: World) -> Result<Vec<Row>> {
    let program = program()?;
    let few = World { services: 100, ..many };
    let counts = [a_change(&program, few)?, a_change(&program, many)?];
    let name = |world: World| format!("instructions of a change, {} Services", world.services);
    let one = Memory::of(&program, World::FIFTY)?;
    let grown = Memory::of(&program, many)?;
    let service = one.grown() / f64::from(World::FIFTY.services);
    let others = grown.grown() - service * f64::from(many.services);
    let endpoint = others / f64::from(many.services * (many.endpoints - 1));
    Ok(vec![
        Row::new(name(few), "instructions", &[counts[0]]),
        Row::new(name(many), "instructions", &[counts[1]])
            .goal("C4")
            .ratios(&name(few), &ratios(&counts[1..], &counts[..1])),
        Row::new("memory of a Service with one endpoint", "bytes", &[service]).goal("C6/service"),
        Row::new("memory of an endpoint more", "bytes", &[endpoint]).goal("C6/endpoint"),
    ])
}

impl Memory {
    fn of(program: &Path, world: World) -> Result<Self> {
        let output = command(Command::new(program), world, 0).output().context("run lb-changes")?;
        ensure!(output.status.success(), "{PROGRAM}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn grown(self) -> f64 {
        self.after as f64 - self.before as f64
    }
}

/// Where the program is: beside this one, or below it for tests.
fn program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found =
        own.ancestors().skip(1).take(2).map(|directory| directory.join(PROGRAM)).find(|path| path.exists());
    found.with_context(|| {
        format!("there is no {PROGRAM} beside {}: `cargo build -p lb-tests --bins`", own.display())
    })
}

fn command(mut command: Command, world: World, changes: u32) -> Command {
    command.args([world.services, world.endpoints, changes].map(|number| number.to_string()));
    command
}

/// Instructions of one change in a world.
///
/// # Errors
/// As [`rows`].
fn a_change(program: &Path, world: World) -> Result<f64> {
    let mut counts = [0.0; 2];
    for (count, changes) in counts.iter_mut().zip([CHANGES, 2 * CHANGES]) {
        let mut valgrind = Command::new("valgrind");
        // callgrind's counts without its graph: cachegrind's, of instructions only.
        valgrind
            .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
            .arg(program);
        let output =
            command(valgrind, world, changes).output().context("run valgrind (Debian package `valgrind`)")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "valgrind {PROGRAM}: {text}");
        // `==pid== I refs: 1,234`; versions differ in the number of spaces.
        let (_, number) = text
            .lines()
            .filter_map(|line| line.split_once("refs:"))
            .find(|(name, _)| name.trim_end().ends_with(" I"))
            .with_context(|| format!("valgrind counted nothing: {text}"))?;
        *count = number.trim().replace(',', "").parse()?;
    }
    Ok((counts[1] - counts[0]) / f64::from(CHANGES))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever walks through all Services for a change shows here: a hundred times as many.
    #[test]
    fn a_change_takes_as_many_instructions_among_many_services_as_among_few() {
        let program = program().unwrap();
        let world = |services| World { services, endpoints: 5, ..World::MANY };
        let [few, many] = [100, 10_000].map(|services| a_change(&program, world(services)).unwrap());
        assert!(few > 1_000.0, "{few} instructions");
        assert!(many / few <= 1.1, "{few} instructions among few, {many} among many");
    }
}
