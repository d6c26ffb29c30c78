//! The kernel's tables, with nothing attached to anything.

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use lb_agent::dataplane::mapped::{Access, MappedMemory};
use lb_agent::dataplane::memory::TableMemory as _;
use lb_agent::dataplane::{Datapath, LoadOptions, Map, Pins, Sizes};
use lb_common::layout::{Forwarding, Table};

use crate::datapath::object_path;

/// Tables and programs of an agent, pinned below a directory of their own and gone when this is.
pub(super) struct Tables {
    datapath: Datapath,
    _own: Own,
}

/// A directory of pins that is gone when this is.
struct Own(Pins);

impl Tables {
    /// Makes them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn new(sizes: Sizes) -> Result<Self> {
        let root = Path::new("/sys/fs/bpf").join(format!("lbt-control-{}", std::process::id()));
        let pins = Pins::new(&root);
        let options = LoadOptions {
            object: Some(object_path()),
            sizes,
            forwarding: Forwarding::Stack,
            log: false,
            masquerade_ports: 1024..=32_767,
            echo_reply: false,
            sockets: None,
        };
        let own = Own(pins);
        let datapath = Datapath::load(&own.0, &options).context("load the programs")?;
        Ok(Self { datapath, _own: own })
    }

    /// The tables, empty and not yet touched through this mapping.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn empty(&self) -> Result<Arc<MappedMemory>> {
        let memory = self.datapath.maps().tables(Access::Write)?;
        for table in Table::ALL {
            for row in 0..memory.rows(table) {
                for word in 0..table.row_words() {
                    if memory.load(table, row, word) != 0 {
                        memory.store(table, row, word, 0)?;
                    }
                }
            }
        }
        drop(memory);
        Ok(Arc::new(self.datapath.maps().tables(Access::Write)?))
    }

    /// Bytes of the kernel's that tables of the service side and their counters take, those of the flows not: all, and those
    /// that only IPv6 has.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(super) fn bytes(&self) -> Result<(u64, u64)> {
        let mut all = (0, 0);
        for table in Table::ALL {
            if matches!(table, Table::Shares | Table::Generations) {
                continue;
            }
            let fd = self.datapath.maps().fd(Map::Table(table)).as_raw_fd();
            let path = format!("/proc/self/fdinfo/{fd}");
            let info = std::fs::read_to_string(&path).with_context(|| path.clone())?;
            let locked = info.lines().find_map(|line| line.strip_prefix("memlock:"));
            let bytes: u64 = locked.with_context(|| format!("{path} has no memlock"))?.trim().parse()?;
            all.0 += bytes;
            if matches!(table, Table::Frontends6 | Table::Backends6) {
                all.1 += bytes;
            }
        }
        Ok(all)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // Pins that stay behind are found at the next look into the directory; there is nobody to tell.
        let _ = self.0.remove_maps();
        let _ = self.0.remove_directories();
    }
}
