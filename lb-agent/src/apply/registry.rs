//! Which backend rows have an address, so that a change of the way there finds them all.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::model::Family;

/// Backend rows by address: a list through the rows, so that an endpoint costs no allocation of its own.
#[derive(Debug, Default)]
pub(super) struct Registry {
    heads: HashMap<IpAddr, u32>,
    links4: Vec<Link>,
    links6: Vec<Link>,
}

/// Neighbours of a row in the list of its address; 0 = none.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    before: u32,
    after: u32,
    /// The plan says that the endpoint runs on this node.
    local: bool,
}

impl Registry {
    fn links(&mut self, family: Family) -> &mut Vec<Link> {
        match family {
            Family::V4 => &mut self.links4,
            Family::V6 => &mut self.links6,
        }
    }

    fn link(&mut self, family: Family, row: u32) -> &mut Link {
        let links = self.links(family);
        let index = row as usize;
        if index >= links.len() {
            links.resize(index + 1, Link::default());
        }
        &mut links[index]
    }

    /// Adds a row that is not in yet.
    pub(super) fn add(&mut self, address: IpAddr, row: u32) {
        let family = Family::of(address);
        let after = self.heads.insert(address, row).unwrap_or(0);
        *self.link(family, row) = Link { before: 0, after, local: false };
        if after != 0 {
            self.link(family, after).before = row;
        }
    }

    /// Takes a row out.
    pub(super) fn remove(&mut self, address: IpAddr, row: u32) {
        let family = Family::of(address);
        let Link { before, after, .. } = *self.link(family, row);
        if after != 0 {
            self.link(family, after).before = before;
        }
        if before != 0 {
            self.link(family, before).after = after;
        } else if after != 0 {
            self.heads.insert(address, after);
        } else {
            self.heads.remove(&address);
        }
    }

    /// The rows with an address.
    pub(super) fn rows(&self, address: IpAddr) -> Vec<u32> {
        let links = match Family::of(address) {
            Family::V4 => &self.links4,
            Family::V6 => &self.links6,
        };
        let first = self.heads.get(&address).copied();
        let next = |row: &u32| links.get(*row as usize).map(|link| link.after).filter(|row| *row != 0);
        std::iter::successors(first, next).collect()
    }

    /// Whether the plan says that the endpoint in a row runs on this node.
    pub(super) fn is_local(&self, family: Family, row: u32) -> bool {
        let links = match family {
            Family::V4 => &self.links4,
            Family::V6 => &self.links6,
        };
        links.get(row as usize).is_some_and(|link| link.local)
    }

    pub(super) fn set_local(&mut self, family: Family, row: u32, local: bool) {
        self.link(family, row).local = local;
    }
}
