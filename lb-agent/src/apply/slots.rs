//! Room for runs of slots, in words of two slots, and for runs of source ranges: best fit with coalescing.

use std::collections::{BTreeMap, BTreeSet};

/// Allocates runs of words. What is retired comes back only after [`SlotAllocator::settle`].
#[derive(Debug)]
pub(super) struct SlotAllocator {
    words: u32,
    /// From here on nothing was ever handed out, or all of it came back.
    tail: u32,
    /// Free runs below `tail`: start -> length, and the same by length.
    by_start: BTreeMap<u32, u32>,
    by_length: BTreeSet<(u32, u32)>,
    retired: Vec<(u32, u32)>,
    used: u32,
}

/// Words that `slots` slots take.
pub(super) const fn words_of(slots: u32) -> u32 {
    slots.div_ceil(2)
}

impl SlotAllocator {
    pub(super) fn new(words: u32) -> Self {
        Self {
            words,
            tail: 0,
            by_start: BTreeMap::new(),
            by_length: BTreeSet::new(),
            retired: Vec::new(),
            used: 0,
        }
    }

    /// An allocator in which these runs (start, length) are taken; `None` when they overlap or lie outside.
    pub(super) fn with_used(words: u32, mut runs: Vec<(u32, u32)>) -> Option<Self> {
        runs.sort_unstable();
        let mut slots = Self::new(words);
        for (start, length) in runs {
            let end = start.checked_add(length).filter(|end| *end <= words)?;
            if start < slots.tail {
                return None;
            }
            if start > slots.tail {
                slots.insert(slots.tail, start - slots.tail);
            }
            slots.tail = end;
            slots.used += length;
        }
        Some(slots)
    }

    /// A run of `length` words: the smallest free one that is long enough, else fresh words.
    pub(super) fn allocate(&mut self, length: u32) -> Option<u32> {
        let start = match self.by_length.range((length, 0)..).next().copied() {
            Some((found, start)) => {
                self.remove(start, found);
                if found > length {
                    self.insert(start + length, found - length);
                }
                start
            }
            None => {
                let start = self.tail;
                self.tail = start.checked_add(length).filter(|end| *end <= self.words)?;
                start
            }
        };
        self.used += length;
        Some(start)
    }

    /// Returns a run that no program ever saw.
    pub(super) fn give_back(&mut self, start: u32, length: u32) {
        self.used -= length;
        self.free(start, length);
    }

    /// Returns a run that programs may still read.
    pub(super) fn retire(&mut self, start: u32, length: u32) {
        self.used -= length;
        self.retired.push((start, length));
    }

    pub(super) fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// What was retired is free now: no program reads it any more.
    pub(super) fn settle(&mut self) {
        for (start, length) in std::mem::take(&mut self.retired) {
            self.free(start, length);
        }
    }

    pub(super) fn used(&self) -> u32 {
        self.used
    }

    fn free(&mut self, mut start: u32, mut length: u32) {
        if let Some((before, run)) = self.by_start.range(..start).next_back().map(|(at, run)| (*at, *run))
            && before + run == start
        {
            self.remove(before, run);
            start = before;
            length += run;
        }
        if let Some(run) = self.by_start.get(&(start + length)).copied() {
            self.remove(start + length, run);
            length += run;
        }
        if start + length == self.tail {
            self.tail = start;
        } else {
            self.insert(start, length);
        }
    }

    fn insert(&mut self, start: u32, length: u32) {
        self.by_start.insert(start, length);
        self.by_length.insert((length, start));
    }

    fn remove(&mut self, start: u32, length: u32) {
        self.by_start.remove(&start);
        self.by_length.remove(&(length, start));
    }
}
