//! The library in this process: cold fills, changes, single stores, Maglev tables.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use aya::maps::Array;
use lb_agent::apply::{Applier, maglev};
use lb_agent::dataplane::Sizes;
use lb_agent::dataplane::memory::{Membarrier, TableMemory};
use lb_agent::index::{ApplyFailure, Change, Engine, EngineConfig, Event, Failed, PlanSink, StoreEvent};
use lb_agent::plan::{Algorithm, PlanChange};
use lb_common::layout::Table;

use super::rules::Rules;
use super::tables::Tables;
use super::world::World;
use crate::bench::report::{Row, ratios};

/// Changes that are timed one by one in a round.
const CHANGES: u32 = 2_000;

/// Rounds in which rules are loaded, which takes many seconds each time.
const RULES: usize = 2;

/// An applier as the engine wants it.
struct Sink<M>(Applier<M>);

impl<M: TableMemory> PlanSink for Sink<M> {
    fn apply(
        &mut self,
        full: bool,
        changes: &mut dyn Iterator<Item = PlanChange>,
    ) -> Result<(), ApplyFailure> {
        changes.for_each(|change| self.0.take(change));
        let report = self.0.commit(full);
        match report.failures.first() {
            None => Ok(()),
            Some(first) => Err(ApplyFailure { failed: Failed::All, reason: first.error.to_string() }),
        }
    }
}

/// All that an agent knows, and its tables.
pub struct Filled<M> {
    engine: Engine,
    sink: Sink<M>,
    world: World,
}

impl<M: TableMemory> Filled<M> {
    /// Takes in a whole world and makes new tables say so; with how long that took.
    ///
    /// # Errors
    /// When something did not fit.
    pub fn new(world: World, memory: M) -> Result<(Self, Duration)> {
        let events = world.events();
        let mut filled = Self::empty(world, memory)?;
        let begin = Instant::now();
        for event in events {
            filled.engine.handle(event);
        }
        filled.round()?;
        let took = begin.elapsed();
        ensure!(
            filled.sink.0.service_count() == world.services as usize,
            "not every Service is in the tables"
        );
        Ok((filled, took))
    }

    /// The same, object by object, as watches tell it.
    ///
    /// # Errors
    /// As [`Filled::new`].
    pub fn gradually(world: World, memory: M) -> Result<Self> {
        let mut filled = Self::empty(world, memory)?;
        for event in (World { services: 0, ..world }).events() {
            filled.engine.handle(event);
        }
        for number in 0..world.services {
            filled.engine.handle(Event::now(Change::Services(StoreEvent::Apply(world.service(number)))));
            for slice in world.slices(number, 0) {
                filled.engine.handle(Event::now(Change::Slices(StoreEvent::Apply(slice))));
            }
        }
        filled.round()?;
        Ok(filled)
    }

    fn empty(world: World, memory: M) -> Result<Self> {
        // Pacing is for watches that say much at once.
        let config = EngineConfig { min_sync_interval: Duration::ZERO, ..EngineConfig::default() };
        let sink = Sink(Applier::adopt(memory, Membarrier)?);
        Ok(Self { engine: Engine::new(config), sink, world })
    }

    fn round(&mut self) -> Result<()> {
        let round = self.engine.run_due(Instant::now(), Instant::now, &mut self.sink);
        match round.map(|round| round.failure) {
            Some(None) => Ok(()),
            Some(Some(failure)) => Err(failure.into()),
            None => anyhow::bail!("there was nothing to do"),
        }
    }

    /// An endpoint is replaced; how long it took from the event to the last store.
    ///
    /// # Errors
    /// When it did not fit.
    pub fn change(&mut self, number: u32, generation: u32) -> Result<Duration> {
        let event = self.world.change(number, generation);
        let begin = Instant::now();
        self.engine.handle(event);
        self.round()?;
        Ok(begin.elapsed())
    }
}

fn millis(duration: &Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Fills and changes, in kernel tables.
///
/// # Errors
/// When the kernel refuses tables, or something does not fit into them.
pub fn rows(rounds: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let defaults = Sizes { connections: 1024, flow_cache_sets: 1, ..Sizes::default() };

    let tables = Tables::new(Sizes { services: 50_000, endpoints: 50_000, ..defaults })?;
    let fifty = (0..rounds).map(|_| Ok(millis(&Filled::new(World::FIFTY, tables.empty()?)?.1)));
    let fifty: Vec<f64> = fifty.collect::<Result<_>>()?;
    rows.push(Row::new("cold fill, 50,000 Services x 1 endpoint", "ms", &fifty).goal("C2"));
    drop(tables);

    let maglev = World { algorithm: Algorithm::Maglev, ..World::MANY };
    // A new endpoint comes before the old one goes.
    let sizes = Sizes { services: World::MANY.services, endpoints: 250_100, ..defaults };
    let tables = Tables::new(sizes)?;
    let (all, six) = tables.bytes()?;
    let bytes = |bytes: u64| bytes as f64 / 1e6;
    let note = format!("{:.1} MB of them for IPv6, which is as large whether used or not", bytes(six));
    rows.push(
        Row::new("kernel memory, 10,000 Services / 250,000 endpoints", "MB", &[bytes(all)])
            .goal("C8")
            .note(note),
    );
    let [mut fills, mut worst, mut usual, mut nft, mut iptables] = [const { Vec::<f64>::new() }; 5];
    let rules = Rules::new(World::MANY.services)?;
    for round in 0..rounds {
        let (mut filled, took) = Filled::new(World::MANY, tables.empty()?)?;
        fills.push(millis(&took));
        let (median, p99) = changes(&mut filled)?;
        usual.push(median);
        worst.push(p99);
        if round < RULES {
            nft.push(millis(&rules.nft()?));
            iptables.push(millis(&rules.iptables()?));
        }
    }
    rows.push(Row::new("cold fill, 10,000 Services / 250,000 endpoints", "ms", &fills).goal("C3/random"));
    rows.push(Row::new("nft -f, 10,000 Services x 1 endpoint", "ms", &nft));
    rows.push(Row::new("iptables-restore, 10,000 Services x 1 endpoint", "ms", &iptables));
    let note = "ours has 25 endpoints a Service, nft's rules one";
    let beside = Row::new("cold fill beside nft -f", "ms", &fills).goal("C3/nft").note(note);
    rows.push(beside.ratios("nft -f, 10,000 Services x 1 endpoint", &ratios(&fills[..nft.len()], &nft)));
    rows.push(Row::new("endpoint change, median", "ms", &usual));
    rows.push(Row::new("endpoint change, p99", "ms", &worst).goal("C1/memory"));
    rows.extend(stores(rounds, &tables)?);
    drop(tables);

    let tables = Tables::new(Sizes { slots: Some(sizes.slots_for_maglev()), ..sizes })?;
    let fills = (0..rounds).map(|_| Ok(millis(&Filled::new(maglev, tables.empty()?)?.1)));
    let fills: Vec<f64> = fills.collect::<Result<_>>()?;
    rows.push(
        Row::new("cold fill with Maglev, 10,000 Services / 250,000 endpoints", "ms", &fills)
            .goal("C3/maglev"),
    );
    Ok(rows)
}

/// Median and p99 of many changes, in milliseconds.
fn changes<M: TableMemory>(filled: &mut Filled<M>) -> Result<(f64, f64)> {
    let services = filled.world.services;
    let mut times = Vec::new();
    for at in 0..CHANGES {
        // Far from one another.
        times.push(millis(&filled.change(at.wrapping_mul(7_919) % services, 1 + at / services % 7)?));
    }
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() / 2], times[times.len() * 99 / 100]))
}

/// What one endpoint costs to write into mapped tables: four words of its row and half a word of a slot; beside a system
/// call that stores one element.
fn stores(rounds: usize, tables: &Tables) -> Result<Vec<Row>> {
    const ENDPOINTS: u32 = 100_000;
    let memory = tables.empty()?;
    // The mapping's pages are there.
    let write = |value: u64| -> Result<()> {
        for row in 1..=ENDPOINTS {
            for word in 0..Table::Backends4.row_words() {
                memory.store(Table::Backends4, row, word, value + u64::from(row))?;
            }
            memory.store(Table::Slots, row / 2, 0, u64::from(row))?;
        }
        Ok(())
    };
    write(1)?;
    let (mut mapped, mut called) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let begin = Instant::now();
        write(round as u64)?;
        mapped.push(begin.elapsed().as_secs_f64() * 1e9 / f64::from(ENDPOINTS));
        called.push(system_call()?);
    }
    let update = "one element by a system call";
    Ok(vec![
        Row::new("writing one endpoint", "ns", &mapped).goal("C9").ratios(update, &ratios(&mapped, &called)),
        Row::new(update, "ns", &called),
    ])
}

/// Nanoseconds of one `BPF_MAP_UPDATE_ELEM`.
fn system_call() -> Result<f64> {
    const CALLS: u32 = 20_000;
    let mut array = Array::<_, [u64; 4]>::create(1024, 0)?;
    let begin = Instant::now();
    for index in 0..CALLS {
        array.set(index % 1024, [u64::from(index); 4], 0)?;
    }
    Ok(begin.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS))
}

/// Maglev tables alone, beside filling as much memory.
pub fn maglev_tables(rounds: usize) -> Vec<Row> {
    let sizes = [(1_021, 25, "us", "C5/1021"), (16_381, 1_000, "us", "C5/16381"), (131_071, 8_000, "us", "")];
    let mut rows = Vec::new();
    for (slots, endpoints, unit, goal) in sizes {
        let identities: Vec<u64> = (0..endpoints)
            .map(|at| maglev::identity((World::MANY.endpoint(at / 25, at % 25, 0).into(), 8080)))
            .collect();
        let (mut built, mut filled) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let begin = Instant::now();
            black_box(maglev::table(slots, black_box(&identities)));
            built.push(begin.elapsed().as_secs_f64() * 1e6);
            let begin = Instant::now();
            black_box(vec![black_box(1_u16); slots as usize]);
            filled.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        let case = format!("Maglev table, {slots} slots, {endpoints} endpoints");
        let row = Row::new(case, unit, &built).ratios("memset of the table", &ratios(&built, &filled));
        rows.push(if goal.is_empty() { row } else { row.goal(goal) });
    }
    rows
}
