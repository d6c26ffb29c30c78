//! Which backend rows have an address, so that a change of the way there finds them all.

use std::net::IpAddr;

use super::backend::BackendRow;
use crate::dataplane::memory::TableMemory;
use crate::model::{Family, KeyHash, Numbers};

/// Backend rows by address: a list through the rows, so that an endpoint costs no allocation of its own and its address lies
/// in the tables alone.
#[derive(Debug, Default)]
pub(super) struct Registry {
    families: [Rows; 2],
}

/// The rows of one family.
#[derive(Debug, Default)]
struct Rows {
    heads: Numbers,
    links: Vec<Link>,
}

/// Neighbours of a row in the list of its address; 0 = none.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    before: u32,
    /// With [`LOCAL`].
    after: u32,
}

/// The plan says that the endpoint in a row runs on this node. There are fewer rows than that.
const LOCAL: u32 = 1 << 31;

impl Rows {
    fn link(&mut self, row: u32) -> &mut Link {
        let index = row as usize;
        if index >= self.links.len() {
            self.links.resize(index + 1, Link::default());
        }
        &mut self.links[index]
    }

    fn after(&self, row: u32) -> u32 {
        self.links.get(row as usize).map_or(0, |link| link.after & !LOCAL)
    }

    fn set_after(&mut self, row: u32, after: u32) {
        let link = self.link(row);
        link.after = link.after & LOCAL | after;
    }

    fn head(&self, memory: &impl TableMemory, address: IpAddr) -> (KeyHash, Option<u32>) {
        let (family, hash) = (Family::of(address), self.heads.hash(&address));
        let has = |row| BackendRow::load(memory, family, row).address == address;
        (hash, self.heads.find(hash, has))
    }
}

impl Registry {
    fn rows_of(&self, family: Family) -> &Rows {
        &self.families[usize::from(family == Family::V6)]
    }

    fn rows_of_mut(&mut self, family: Family) -> &mut Rows {
        &mut self.families[usize::from(family == Family::V6)]
    }

    /// Adds a row that has this address in the tables and is not in yet.
    pub(super) fn add(&mut self, memory: &impl TableMemory, address: IpAddr, row: u32) {
        let rows = self.rows_of_mut(Family::of(address));
        let (hash, head) = rows.head(memory, address);
        *rows.link(row) = Link { before: 0, after: head.unwrap_or(0) };
        match head {
            Some(head) => {
                rows.heads.replace(hash, head, row);
                rows.link(head).before = row;
            }
            None => rows.heads.insert(hash, row),
        }
    }

    /// Takes a row out.
    pub(super) fn remove(&mut self, address: IpAddr, row: u32) {
        let rows = self.rows_of_mut(Family::of(address));
        let (before, after) = (rows.link(row).before, rows.after(row));
        if after != 0 {
            rows.link(after).before = before;
        }
        let hash = rows.heads.hash(&address);
        if before != 0 {
            rows.set_after(before, after);
        } else if after != 0 {
            rows.heads.replace(hash, row, after);
        } else {
            rows.heads.remove(hash, row);
        }
    }

    /// The rows with an address.
    pub(super) fn rows(&self, memory: &impl TableMemory, address: IpAddr) -> Vec<u32> {
        let rows = self.rows_of(Family::of(address));
        let next = |row: &u32| Some(rows.after(*row)).filter(|row| *row != 0);
        std::iter::successors(rows.head(memory, address).1, next).collect()
    }

    /// Whether the plan says that the endpoint in a row runs on this node.
    pub(super) fn is_local(&self, family: Family, row: u32) -> bool {
        self.rows_of(family).links.get(row as usize).is_some_and(|link| link.after & LOCAL != 0)
    }

    pub(super) fn set_local(&mut self, family: Family, row: u32, local: bool) {
        let link = self.rows_of_mut(family).link(row);
        link.after = link.after & !LOCAL | if local { LOCAL } else { 0 };
    }
}
