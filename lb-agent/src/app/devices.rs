//! The task that follows devices: attaches programs to what leads to pods, keeps them there, and keeps the ways.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tracing::{debug, error, info, warn};

use super::tables::{Question, SharedTables};
use crate::dataplane::Attacher;
use crate::net::{Affected, Changed, DeviceSelection, Follower, Link, Mirror, Notice, ask_neighbour};

/// How often it is looked whether programs are still attached.
const REPAIR: Duration = Duration::from_secs(1);
/// How often unanswered questions for neighbours are put again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How often pods behind a bridge are asked for a sign of life, so that the bridge remembers their port: it forgets
/// after 300 seconds (`BR_DEFAULT_AGEING_TIME`).
const REMIND: Duration = Duration::from_secs(100);
/// How often everything is read anew, in case a notification told less than it should have.
const RESYNC: Duration = Duration::from_secs(300);

/// Follows the node's devices.
pub(super) struct Devices {
    pub(super) follower: Follower,
    pub(super) attacher: Attacher,
    pub(super) selection: DeviceSelection,
    pub(super) tables: SharedTables,
    pub(super) questions: UnboundedReceiver<Question>,
}

impl Devices {
    /// Reads what there is. Nothing is attached yet.
    pub(super) async fn read(&mut self) -> anyhow::Result<()> {
        let mirror = self.follower.dump().await.context("asking the kernel for devices and routes")?;
        self.tables.lock().mirror = mirror;
        Ok(())
    }

    /// Attaches the programs to every pod device, and takes them off what is none any more.
    pub(super) async fn attach_all(&mut self) {
        let (wanted, gone) = {
            let tables = self.tables.lock();
            let wanted: Vec<Link> =
                tables.mirror.links().filter(|link| self.is_pods(&tables.mirror, link)).cloned().collect();
            let is_wanted = |index: &u32| wanted.iter().any(|link| link.index == *index);
            let stale = self.attacher.devices().keys().filter(|index| !is_wanted(index));
            let gone: Vec<(u32, bool)> =
                stale.map(|index| (*index, tables.mirror.link(*index).is_some())).collect();
            (wanted, gone)
        };
        for (index, exists) in gone {
            if exists { self.detach(index).await } else { self.forget(index) }
        }
        for link in &wanted {
            if self.attacher.devices().get(&link.index) != Some(&link.name) {
                self.attach(link).await;
            }
        }
        match self.attacher.remove_stale() {
            Ok(stale) if !stale.is_empty() => {
                info!(interfaces = ?stale, "removed links of devices that are gone");
            }
            Ok(_) => {}
            Err(error) => warn!(error = &error as &dyn std::error::Error, "links of gone devices stay"),
        }
    }

    /// Number of devices that have the programs.
    pub(super) fn attached(&self) -> usize {
        self.attacher.devices().len()
    }

    fn is_pods(&self, mirror: &Mirror, link: &Link) -> bool {
        self.selection.selects(link, link.master.and_then(|master| mirror.link(master)))
    }

    /// Runs until the netlink connection ends, which it does not by itself.
    pub(super) async fn run(mut self) {
        let mut repair = interval(REPAIR);
        repair.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ask_again = interval(ASK_AGAIN);
        let mut remind = interval_at(Instant::now() + REMIND, REMIND);
        let mut resync = interval_at(Instant::now() + RESYNC, RESYNC);
        loop {
            tokio::select! {
                biased;
                notice = self.follower.next() => {
                    if !self.notice(notice).await {
                        error!("the netlink connection ended: new pods are not served until a restart");
                        return;
                    }
                }
                Some(question) = self.questions.recv() => self.ask(question).await,
                _ = repair.tick() => self.repair().await,
                _ = ask_again.tick() => {
                    let unresolved = self.tables.lock().unresolved();
                    self.ask_all(unresolved).await;
                }
                _ = remind.tick() => {
                    let bridged = self.tables.lock().bridged();
                    self.ask_all(bridged).await;
                }
                _ = resync.tick() => self.resync().await,
            }
        }
    }

    /// Handles a notification and all that are there already. False at the end.
    async fn notice(&mut self, first: Notice) -> bool {
        let mut next = Some(first);
        let (mut affected, mut lost) = (BTreeSet::new(), false);
        while let Some(notice) = next {
            match notice {
                Notice::Closed => return false,
                Notice::Lost => lost = true,
                Notice::Message(message) => {
                    let changed = Follower::take_in(&mut self.tables.lock().mirror, &message);
                    self.device_changed(&changed).await;
                    affected.extend(changed.affected);
                }
            }
            next = self.follower.try_next();
        }
        if lost {
            warn!("the kernel dropped notifications about devices and routes: reading everything again");
            self.resync().await;
        } else {
            self.tables.lock().refresh_ways(&affected);
        }
        true
    }

    async fn device_changed(&mut self, changed: &Changed) {
        if let Some(index) = changed.gone {
            self.forget(index);
        }
        let Some(index) = changed.link else { return };
        let link = {
            let tables = self.tables.lock();
            let Some(link) = tables.mirror.link(index) else { return };
            self.is_pods(&tables.mirror, link).then(|| link.clone())
        };
        match link {
            Some(link) if self.attacher.devices().get(&index) != Some(&link.name) => self.attach(&link).await,
            None if self.attacher.devices().contains_key(&index) => self.detach(index).await,
            _ => {}
        }
    }

    async fn attach(&mut self, link: &Link) {
        match self.attacher.attach(link.index, &link.name).await {
            Ok(()) => debug!(device = link.name, interface = link.index, "programs attached"),
            // A device that is gone again says so itself next; any other trouble is seen to by `repair`.
            Err(error) => {
                warn!(device = link.name, error = &error as &dyn std::error::Error, "programs not attached");
            }
        }
    }

    async fn detach(&mut self, index: u32) {
        match self.attacher.detach(index).await {
            Ok(()) => debug!(interface = index, "programs detached: no pod device any more"),
            Err(error) => {
                warn!(interface = index, error = &error as &dyn std::error::Error, "programs not detached");
            }
        }
    }

    fn forget(&mut self, index: u32) {
        if let Err(error) = self.attacher.forget(index) {
            warn!(interface = index, error = &error as &dyn std::error::Error, "pins not removed");
        }
    }

    async fn repair(&mut self) {
        match self.attacher.repair().await {
            Ok(repaired) => {
                for hook in repaired {
                    let program = hook.hook.program();
                    warn!(
                        device = hook.device,
                        program, "a program was missing from a device: attached again"
                    );
                }
            }
            Err(error) => warn!(error = &error as &dyn std::error::Error, "programs not attached again"),
        }
        // Devices whose first attempt failed.
        let missing: Vec<Link> = {
            let tables = self.tables.lock();
            let missing = |link: &&Link| {
                !self.attacher.devices().contains_key(&link.index) && self.is_pods(&tables.mirror, link)
            };
            tables.mirror.links().filter(missing).cloned().collect()
        };
        for link in missing {
            self.attach(&link).await;
        }
    }

    async fn resync(&mut self) {
        match self.read().await {
            Ok(()) => {
                self.attach_all().await;
                self.tables.lock().refresh_ways(&BTreeSet::from([Affected::All]));
            }
            Err(error) => warn!("{error:#}; tried again later"),
        }
    }

    async fn ask_all(&self, questions: Vec<Question>) {
        for question in questions {
            self.ask(question).await;
        }
    }

    async fn ask(&self, question: Question) {
        let known = self.tables.lock().knows_mac(question);
        let Question { interface, address } = question;
        let asked = ask_neighbour(self.follower.handle(), interface, address, known).await;
        debug!(%address, interface, known, error = ?asked.err(), "asked for a neighbour");
    }
}
