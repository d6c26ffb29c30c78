//! The programs against the model: random Services, random histories of packets and changes, and after each packet the same
//! verdict, the same bytes, and in the end the same counters, connections and affinities.
//!
//! `LB_DIFFERENTIAL` names the number of sequences (of both forwarding modes together), `LB_TEST_SEED` the seed. What
//! disagrees is shrunk to the fewest Services and packets that still do.

#[path = "differential/express.rs"]
mod express;
#[path = "differential/frames.rs"]
mod frames;
#[path = "differential/plan.rs"]
mod plan;
#[path = "differential/run.rs"]
mod run;
#[path = "differential/world.rs"]
mod world;

use std::cell::RefCell;
use std::time::Instant;

use lb_common::layout::Forwarding;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::run::Bench;

/// Sequences, unless `LB_DIFFERENTIAL` names another number.
const SEQUENCES: u32 = 10_000;
/// The seed, unless `LB_TEST_SEED` names another.
const SEED: u64 = 0x5eed_0002;
/// Sequences between two lines of progress.
const PROGRESS: u32 = 10_000;

#[test]
fn programs_and_model_agree_in_mode_stack() {
    agree(Forwarding::Stack);
}

#[test]
fn programs_and_model_agree_in_mode_redirect() {
    agree(Forwarding::Redirect);
}

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value}: not a number")))
}

fn agree(forwarding: Forwarding) {
    lb_tests::datapath::pin();
    let seed: u64 = number("LB_TEST_SEED").unwrap_or(SEED);
    let sequences = number("LB_DIFFERENTIAL").unwrap_or(SEQUENCES).div_ceil(2);
    println!("{forwarding:?}: LB_DIFFERENTIAL={} LB_TEST_SEED={seed}", sequences * 2);
    let began = Instant::now();
    let config =
        Config { cases: sequences, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    let mut bits = [0; 32];
    bits[..8].copy_from_slice(&seed.to_le_bytes());
    bits[8] = forwarding as u8;
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bits));
    let bench = RefCell::new(Bench::load(forwarding).expect("the programs load"));
    let done = RefCell::new(0_u32);
    let result = runner.run(&plan::plans(), |plan| {
        let outcome = bench.borrow_mut().run(&plan);
        *done.borrow_mut() += 1;
        if done.borrow().is_multiple_of(PROGRESS) {
            eprintln!("{forwarding:?}: {} of {sequences} sequences, {:?}", done.borrow(), began.elapsed());
        }
        outcome.map_err(|error| TestCaseError::fail(format!("{error:#}")))
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, plan)) => panic!("{forwarding:?}, seed {seed}: {reason}\n{plan:?}"),
        Err(TestError::Abort(reason)) => panic!("{forwarding:?}, seed {seed}: {reason}"),
    }
    let bench = bench.into_inner();
    println!("{sequences} sequences in {:?}: {}", began.elapsed(), bench.seen());
    bench.assert_enough(sequences);
}
