//! Fills tables with a made-up cluster and changes endpoints, for instruction counters and for a look at its memory:
//! `lb-changes SERVICES ENDPOINTS CHANGES`. Prints its anonymous memory before and after filling, as JSON.

use std::fs;

use anyhow::{Context as _, Result};
use lb_agent::dataplane::memory::{TableSizes, VecMemory};
use lb_tests::bench::control::fill::Filled;
use lb_tests::bench::control::world::World;

/// Bytes of memory that are this process's alone.
fn anonymous() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

fn main() -> Result<()> {
    let numbers =
        std::env::args().skip(1).map(|argument| argument.parse()).collect::<Result<Vec<u32>, _>>()?;
    let [services, endpoints, changes] = numbers[..] else {
        anyhow::bail!("lb-changes SERVICES ENDPOINTS CHANGES")
    };
    let world = World { services, endpoints, ..World::MANY };
    let all = services * endpoints;
    // Tables are in memory that was there before; in the kernel they are none of the agent's.
    let memory = VecMemory::new(TableSizes {
        frontend_buckets: services.next_power_of_two().max(16),
        services: services + 1,
        slot_words: all * 2 + 16,
        backends: all + 64,
    });
    let before = anonymous()?;
    let mut filled = Filled::gradually(world, memory)?;
    let after = anonymous()?;
    for change in 0..changes {
        // Forth and back, far from one another.
        filled.change(change.wrapping_mul(7_919) % services, 1 + change / services % 7)?;
    }
    println!("{}", serde_json::json!({"before": before, "after": after}));
    Ok(())
}
