//! Publish words: the list of each class, a run of slots that the word of the class names.
//!
//! Classes of one row whose lists are equal share one run, as they do unless a traffic policy is Local.

use lb_common::layout::{Class, Publish, ServiceVerdict, Table, slot_of_word};

use super::slots::words_of;
use super::{Applier, ApplyError};
use crate::dataplane::memory::{StoreError, TableMemory};
use crate::plan::{ServicePortPlan, Verdict};

/// What a class without frontends says: nobody asks, except a program that met a frontend just before it went.
const NOBODY: Publish = Publish { base: 0, count: 0, verdict: ServiceVerdict::Reject as u8 };

impl<M: TableMemory> Applier<M> {
    /// Stores the verdict of every class that has frontends, if it is another: a new run of slots, then the publish
    /// word. `rows` are the rows of the plan's endpoints.
    pub(super) fn publish(
        &mut self,
        index: u32,
        plan: &ServicePortPlan,
        rows: &[u32],
    ) -> Result<(), ApplyError> {
        for class in Class::ALL {
            match plan.verdict(class) {
                Some(verdict) => self.publish_class(index, class, verdict, rows, plan)?,
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

    fn publish_class(
        &mut self,
        index: u32,
        class: Class,
        verdict: &Verdict,
        rows: &[u32],
        plan: &ServicePortPlan,
    ) -> Result<(), ApplyError> {
        let invalid = || ApplyError::InvalidPlan(plan.key.to_string());
        let chosen: Vec<u32> = match verdict {
            Verdict::Balance(chosen) => {
                let row = |position: &u32| rows.get(*position as usize).copied();
                chosen.iter().map(row).collect::<Option<_>>().ok_or_else(invalid)?
            }
            Verdict::Reject | Verdict::Drop => Vec::new(),
        };
        let count = u32::try_from(chosen.len()).ok().filter(|count| *count <= Publish::MAX_COUNT);
        let count = count.ok_or_else(invalid)?;
        let verdict = match verdict {
            Verdict::Balance(_) if count > 0 => ServiceVerdict::Random,
            Verdict::Drop => ServiceVerdict::Drop,
            Verdict::Balance(_) | Verdict::Reject => ServiceVerdict::Reject,
        } as u8;
        if count == 0 {
            return Ok(self.store_publish(index, class, Publish { base: 0, count, verdict })?);
        }
        // Its own run, or that of another class.
        let others = Class::ALL.into_iter().filter(|other| *other != class);
        let fits =
            [class].into_iter().chain(others).map(|class| self.published(index, class)).find(|found| {
                (found.verdict, found.count) == (verdict, count)
                    && holds(&self.writer.memory, *found, &chosen)
            });
        if let Some(publish) = fits {
            return Ok(self.store_publish(index, class, publish)?);
        }
        let words = words_of(count);
        let start = self.writer.allocate_slots(words)?;
        let publish = Publish { base: start * 2, count, verdict };
        let result = write_run(&self.writer.memory, start, &chosen)
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
        let chooses = |publish: Publish| publish.verdict == ServiceVerdict::Random as u8;
        if class == Class::Internal && chooses(before) != chooses(publish) {
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
    let has_run = publish.verdict == ServiceVerdict::Random as u8 && publish.count > 0;
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
