//! The XDP program at network devices: where it is to run, and that it does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;
use tracing::{info, warn};

use super::tables::SharedTables;
use crate::dataplane::{Attached, Datapath, Pins, Role, XdpAttacher, XdpDevice, XdpMode, XdpNews, XdpPlace};
use crate::metrics::Metrics;
use crate::net::LinkKind;

/// Keeps the program where the mode in force wants it.
pub(super) struct Wire {
    attacher: XdpAttacher,
    mode: watch::Receiver<XdpMode>,
    metrics: Arc<Metrics>,
    /// The last trouble that was told: it is the same every second.
    trouble: String,
}

impl Wire {
    /// Nothing is attached yet, and what an earlier agent attached stays for the moment.
    pub(super) fn new(
        datapath: Arc<Datapath>,
        pins: &Pins,
        mut mode: watch::Receiver<XdpMode>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let mut attacher = XdpAttacher::new(datapath, pins);
        attacher.set_mode(*mode.borrow_and_update());
        Self { attacher, mode, metrics, trouble: String::new() }
    }

    /// Waits until another mode is wanted, and takes it.
    pub(super) async fn changed(&mut self) {
        if self.mode.changed().await.is_err() {
            // Nobody is left who could want one.
            std::future::pending::<()>().await;
        }
        let mode = *self.mode.borrow_and_update();
        if mode != self.attacher.mode() {
            info!(xdp = ?mode, "XDP mode changed");
            self.attacher.set_mode(mode);
        }
    }

    /// A device is gone.
    pub(super) fn forget(&mut self, interface: u32) {
        if let Err(error) = self.attacher.forget(interface) {
            warn!(interface, error = &error as &dyn std::error::Error, "pins of XDP links not removed");
        }
    }

    /// Brings every device to where it should be. `attached`: the devices that have the tc programs. The tables are free
    /// while the kernel is asked: that may take as long as somebody else changes devices.
    pub(super) fn keep(&mut self, attached: &BTreeMap<u32, Attached>, tables: &SharedTables) {
        let (devices, takers) =
            if self.attacher.mode() == XdpMode::Off { Default::default() } else { choose(attached, tables) };
        match self.attacher.keep(&devices, &takers) {
            Ok(kept) => {
                self.trouble.clear();
                for news in kept.news {
                    self.tell(news);
                }
                if kept.ways_changed
                    && let Err(error) = tables.lock().applier().void_ways()
                {
                    warn!(%error, "programs may remember old ways for some seconds");
                }
            }
            Err(error) => {
                let trouble = format!("{error:?}");
                if self.trouble != trouble {
                    warn!(error = &error as &dyn std::error::Error, "XDP is not up to date; tried again");
                    self.trouble = trouble;
                }
            }
        }
        let attached = self.attacher.attached();
        for place in XdpPlace::ALL {
            let devices = attached.values().filter(|it| **it == place).count();
            self.metrics.xdp_devices(place).set(devices as u64);
        }
    }

    fn tell(&self, news: XdpNews) {
        match news {
            XdpNews::Attached(device, place, None) => info!(device, mode = place.name(), "XDP runs"),
            XdpNews::Attached(device, place, Some(why)) => {
                info!(device, mode = place.name(), "XDP runs outside the driver: {why}");
            }
            XdpNews::Repaired(device, place) => {
                self.metrics.xdp_repairs.add(1);
                warn!(
                    device,
                    mode = place.name(),
                    "the XDP program was missing from a device: attached again"
                );
            }
            XdpNews::Detached(interface) => info!(interface, "XDP program detached"),
            XdpNews::Refused(device, why) => {
                warn!(device, "served without XDP, by the programs behind it; tried again: {why}");
            }
            XdpNews::NoProgram(why) => {
                let error = &why as &dyn std::error::Error;
                warn!(error, "served without XDP, by the programs behind it: the kernel refuses the program");
            }
        }
    }
}

/// Devices that are to run the program: network cards, and veth devices where others expect one (a node that is a
/// container). And those that frames may go to.
fn choose(
    attached: &BTreeMap<u32, Attached>,
    tables: &SharedTables,
) -> (BTreeMap<u32, XdpDevice>, BTreeSet<u32>) {
    let tables = tables.lock();
    let (mut devices, mut takers) = (BTreeMap::new(), BTreeSet::new());
    for (interface, Attached { name, role }) in attached {
        let Some(link) = tables.mirror.link(*interface) else { continue };
        let (card, pair) = (link.kind == LinkKind::Ethernet, link.kind == LinkKind::Veth);
        let pod = *role == Role::Pod;
        if !pod && (card || pair) {
            devices.insert(*interface, XdpDevice { name: name.clone(), pair, mtu: link.mtu });
        }
        if link.up && (pod || card || pair) {
            takers.insert(*interface);
        }
    }
    (devices, takers)
}
