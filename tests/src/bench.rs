//! Benchmarks: what `cargo xtask bench` runs, as ratios measured within one run, with their spread.

pub mod machine;
pub mod packet;
pub mod report;
