//! Publish words: the list of each class, a run of slots that the word of the class names.
//!
//! Classes of one row whose lists are equal share one run, as they do unless a traffic policy is Local.
//!
//! A run names each endpoint once where chance chooses, and is a Maglev table where the client's hash does.

use lb_common::layout::{Algorithm, Class, Publish, ServiceVerdict, Table, slot_of_word};

use super::maglev;
use super::slots::words_of;
use super::{Applier, ApplyError};
use crate::dataplane::memory::{StoreError, TableMemory};
use crate::plan::{ServicePortPlan, Verdict};

/// What a class without frontends says: nobody asks, except a program that met a frontend just before it went.
const NOBODY: Publish = Publish { base: 0, count: 0, verdict: ServiceVerdict::Reject as u8 };

/// What a run of slots may name: no rows for a verdict that needs none.
#[derive(Default)]
struct List {
    /// Every row once.
    once: Vec<u32>,
    /// The Maglev table of them, where there is to be one.
    table: Option<Vec<u32>>,
}

/// Lists of a port's verdicts, of which most are equal: none is made twice in a row.
#[derive(Default)]
struct Lists<'p>(Option<(&'p Verdict, List)>);

impl<'p> Lists<'p> {
    fn of(
        &mut self,
        verdict: &'p Verdict,
        make: impl FnOnce(&Verdict) -> Result<List, ApplyError>,
    ) -> Result<&List, ApplyError> {
        let list = match self.0.take() {
            Some((same, list)) if same == verdict => list,
            _ => make(verdict)?,
        };
        Ok(&self.0.insert((verdict, list)).1)
    }
}

impl<M: TableMemory> Applier<M> {
    /// Stores the verdict of every class that has frontends, if it is another: a new run of slots, then the publish
    /// word. `rows` are the rows of the plan's endpoints.
    pub(super) fn publish(
        &mut self,
        index: u32,
        plan: &ServicePortPlan,
        rows: &[u32],
    ) -> Result<(), ApplyError> {
        let mut lists = Lists::default();
        for class in Class::ALL {
            match plan.verdict(class) {
                Some(verdict) => {
                    let list = lists.of(verdict, |verdict| self.list(verdict, rows, plan))?;
                    self.publish_class(index, class, verdict, list, plan)?;
                }
                // What is there stays as long as the frontends do.
                None if self.published(index, class).encode() == 0 => {
                    self.store_publish(index, class, NOBODY)?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Takes away the lists of classes that have no frontends any more.
    pub(super) fn unpublish(&mut self, index: u32, plan: &ServicePortPlan) -> Result<(), StoreError> {
        let unused = Class::ALL.into_iter().filter(|class| plan.verdict(*class).is_none());
        unused.into_iter().try_for_each(|class| self.store_publish(index, class, NOBODY))
    }

    /// What the slots of a verdict name.
    fn list(&self, verdict: &Verdict, rows: &[u32], plan: &ServicePortPlan) -> Result<List, ApplyError> {
        let invalid = || ApplyError::InvalidPlan(plan.key.to_string());
        let Verdict::Balance(chosen) = verdict else { return Ok(List::default()) };
        let row = |position: &u32| rows.get(*position as usize).copied();
        let once: Vec<u32> = chosen.iter().map(row).collect::<Option<_>>().ok_or_else(invalid)?;
        if once.len() > Publish::MAX_COUNT as usize {
            return Err(invalid());
        }
        if plan.algorithm == Algorithm::Random {
            return Ok(List { once, table: None });
        }
        let Some(size) = maglev::size(self.maglev_sizes, once.len()) else {
            return Ok(List { once, table: None });
        };
        let endpoint = |position: &u32| plan.endpoints.get(*position as usize);
        let identity =
            |position| endpoint(position).map(|found| maglev::identity((found.address, found.port)));
        let identities: Vec<u64> = chosen.iter().map(identity).collect::<Option<_>>().ok_or_else(invalid)?;
        let table = maglev::table(size, &identities).into_iter();
        let table = Some(table.map(|position| once[usize::from(position)]).collect());
        Ok(List { once, table })
    }

    fn publish_class(
        &mut self,
        index: u32,
        class: Class,
        verdict: &Verdict,
        list: &List,
        plan: &ServicePortPlan,
    ) -> Result<(), ApplyError> {
        if list.once.is_empty() {
            let verdict = match verdict {
                Verdict::Drop => ServiceVerdict::Drop,
                Verdict::Balance(_) | Verdict::Reject => ServiceVerdict::Reject,
            };
            let publish = Publish { base: 0, count: 0, verdict: verdict as u8 };
            return Ok(self.store_publish(index, class, publish)?);
        }
        if let Some(table) = &list.table {
            match self.publish_run(index, class, Algorithm::Maglev, table) {
                Err(ApplyError::TableFull { used, rows, .. }) => {
                    let (service, words) = (plan.key.to_string(), words_of(table.len() as u32));
                    let error = ApplyError::NoMaglev { service, words, used, rows };
                    self.by_chance.insert(plan.key.service.clone(), error);
                }
                result => return result,
            }
        }
        self.publish_run(index, class, Algorithm::Random, &list.once)
    }

    /// Publishes a run of slots: the class's own when it names these rows, or that of another class, or a new one.
    fn publish_run(
        &mut self,
        index: u32,
        class: Class,
        algorithm: Algorithm,
        rows: &[u32],
    ) -> Result<(), ApplyError> {
        let (verdict, count) = (algorithm.verdict() as u8, rows.len() as u32);
        let others = Class::ALL.into_iter().filter(|other| *other != class);
        let fits =
            [class].into_iter().chain(others).map(|class| self.published(index, class)).find(|found| {
                (found.verdict, found.count) == (verdict, count) && holds(&self.writer.memory, *found, rows)
            });
        if let Some(publish) = fits {
            return Ok(self.store_publish(index, class, publish)?);
        }
        let words = words_of(count);
        let start = match algorithm {
            Algorithm::Random => self.writer.allocate_slots(words)?,
            Algorithm::Maglev => self.writer.allocate_maglev(words)?,
        };
        let publish = Publish { base: start * 2, count, verdict };
        let result = write_run(&self.writer.memory, start, rows)
            .and_then(|()| self.store_publish(index, class, publish));
        if result.is_err() {
            self.writer.slots.give_back(start, words);
        }
        Ok(result?)
    }

    /// The publish word of a class.
    pub(super) fn published(&self, index: u32, class: Class) -> Publish {
        Publish::decode(self.writer.memory.load(Table::Services, index, class as usize))
    }

    /// Stores a publish word, if it is another. The run that it named is retired when no other class uses it.
    pub(super) fn store_publish(
        &mut self,
        index: u32,
        class: Class,
        publish: Publish,
    ) -> Result<(), StoreError> {
        let before = self.published(index, class);
        if before == publish {
            return Ok(());
        }
        self.writer.memory.store(Table::Services, index, class as usize, publish.encode())?;
        if class == Class::Internal && before.algorithm().is_some() != publish.algorithm().is_some() {
            self.endpoints_came_or_went(index);
        }
        if let Some((start, words)) = run_of(before)
            && Class::ALL
                .into_iter()
                .all(|class| run_of(self.published(index, class)) != Some((start, words)))
        {
            self.writer.slots.retire(start, words);
        }
        Ok(())
    }

    /// Makes a row unused again: no class has a verdict.
    pub(super) fn clear_publish(&mut self, index: u32) -> Result<(), StoreError> {
        Class::ALL.into_iter().try_for_each(|class| self.store_publish(index, class, Publish::decode(0)))
    }
}

/// The words of slots that a publish word names.
pub(super) fn run_of(publish: Publish) -> Option<(u32, u32)> {
    let has_run = publish.algorithm().is_some() && publish.count > 0;
    has_run.then(|| (publish.base / 2, words_of(publish.count)))
}

/// True when a published run names exactly these rows.
fn holds(memory: &impl TableMemory, publish: Publish, rows: &[u32]) -> bool {
    rows.iter().zip(publish.base..).all(|(row, slot)| {
        let (word, shift) = slot_of_word(slot);
        (memory.load(Table::Slots, word, 0) >> shift) as u32 == *row
    })
}

fn write_run(memory: &impl TableMemory, start: u32, rows: &[u32]) -> Result<(), StoreError> {
    for (word, pair) in (start..).zip(rows.chunks(2)) {
        let value = pair.iter().rev().fold(0, |value, row| value << 32 | u64::from(*row));
        if memory.load(Table::Slots, word, 0) != value {
            memory.store(Table::Slots, word, 0, value)?;
        }
    }
    Ok(())
}
