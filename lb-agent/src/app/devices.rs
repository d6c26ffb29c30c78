//! The task that follows devices: attaches programs to what leads to pods and out of the node, keeps them there, and
//! keeps the node's addresses and the ways.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tracing::{debug, error, info, warn};

use super::addresses::Addresses;
use super::keep::REPAIR;
use super::tables::{Question, SharedTables};
use super::xdp::Wire;
use crate::dataplane::{Attacher, Role};
use crate::metrics::Metrics;
use crate::net::{
    Affected, Changed, DeviceSelection, FilterRemovals, Follower, Link, Mirror, NetChoice, Notice,
    ask_neighbour,
};

/// How long after a filter was removed it is looked for ours: whoever removes one often removes more.
const SOON: Duration = Duration::from_millis(50);
/// How often unanswered questions for neighbours are put again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How often pods behind a bridge are asked for a sign of life, so that the bridge remembers their port: it forgets
/// after 300 seconds (`BR_DEFAULT_AGEING_TIME`).
const REMIND: Duration = Duration::from_secs(100);
/// How often everything is read anew, in case a notification told less than it should have.
const RESYNC: Duration = Duration::from_secs(300);

/// How long a network device keeps its programs after it lost its last address and route: whoever sets addresses often
/// takes the old ones away first, and flows in between are to be translated.
const LINGER: Duration = Duration::from_secs(5);

async fn next_removal(removals: &mut Option<FilterRemovals>) {
    match removals {
        Some(removals) => removals.next().await,
        None => std::future::pending().await,
    }
}

/// Follows the node's devices.
pub(super) struct Devices {
    pub(super) follower: Follower,
    pub(super) attacher: Attacher,
    pub(super) selection: DeviceSelection,
    pub(super) addresses: Addresses,
    pub(super) tables: SharedTables,
    pub(super) questions: UnboundedReceiver<Question>,
    /// Network devices that are none any more, since when.
    pub(super) lingering: BTreeMap<u32, Instant>,
    /// Devices that were left out, and whose names were told.
    pub(super) left_out: BTreeSet<u32>,
    /// Tells of filters that somebody removes; `None` where links do the work.
    pub(super) removals: Option<FilterRemovals>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) wire: Wire,
}

impl Devices {
    /// Reads what there is. Nothing is attached yet.
    pub(super) async fn read(&mut self) -> anyhow::Result<()> {
        let mirror = self.follower.dump().await.context("asking the kernel for devices and routes")?;
        self.tables.lock().mirror = mirror;
        self.addresses.refresh(&self.selection);
        Ok(())
    }

    /// Attaches the programs to every device that is to have them, and takes them off what is not any more.
    pub(super) async fn attach_all(&mut self) {
        let gone: Vec<u32> = {
            let tables = self.tables.lock();
            let gone = |index: &u32| tables.mirror.link(*index).is_none();
            self.attacher.devices().keys().copied().filter(gone).collect()
        };
        for index in gone {
            self.forget(index);
        }
        self.bring_all_up_to_date().await;
        match self.attacher.remove_stale() {
            Ok(stale) if !stale.is_empty() => {
                info!(interfaces = ?stale, "removed links of devices that are gone");
            }
            Ok(_) => {}
            Err(error) => warn!(error = &error as &dyn std::error::Error, "links of gone devices stay"),
        }
        self.keep_wire();
    }

    /// Sees to the XDP program, after the programs that serve what it leaves.
    fn keep_wire(&mut self) {
        self.wire.keep(self.attacher.devices(), &self.tables);
    }

    /// Whether filters of an earlier agent serve, on whichever tables.
    pub(super) async fn are_served_by_filters(&self) -> bool {
        let devices: Vec<u32> = self.tables.lock().mirror.links().map(|link| link.index).collect();
        // What cannot be asked now cannot be attached either, and is told then.
        self.attacher.finds_filters(devices).await.unwrap_or(false)
    }

    /// Number of devices that have the programs.
    pub(super) fn attached(&self) -> usize {
        self.attacher.devices().len()
    }

    /// Names of the network devices that there are.
    pub(super) fn net_devices(&self) -> Vec<String> {
        let tables = self.tables.lock();
        let net = |link: &&Link| self.role_of(&tables.mirror, link) == Some(Role::Net);
        tables.mirror.links().filter(net).map(|link| link.name.clone()).collect()
    }

    /// What a device is to the datapath.
    fn role_of(&self, mirror: &Mirror, link: &Link) -> Option<Role> {
        if self.selection.is_pods(mirror, link) {
            return Some(Role::Pod);
        }
        (self.selection.chooses_net(mirror, link) == NetChoice::Yes).then_some(Role::Net)
    }

    /// Devices that do not have the programs they are to have, with their role.
    fn out_of_date(&self) -> Vec<(Link, Option<Role>)> {
        let tables = self.tables.lock();
        let differs = |link: &Link| {
            let (has, role) = (self.attacher.devices().get(&link.index), self.role_of(&tables.mirror, link));
            let same = match (has, role) {
                (Some(has), Some(role)) => has.role == role && has.name == link.name,
                (has, role) => has.is_none() && role.is_none(),
            };
            (!same).then(|| (link.clone(), role))
        };
        tables.mirror.links().filter_map(differs).collect()
    }

    async fn bring_all_up_to_date(&mut self) {
        self.tell_left_out();
        let out_of_date = self.out_of_date();
        self.lingering.retain(|index, _| out_of_date.iter().any(|(link, _)| link.index == *index));
        for (link, role) in out_of_date {
            self.bring_up_to_date(&link, role).await;
        }
    }

    async fn bring_up_to_date(&mut self, link: &Link, role: Option<Role>) {
        let has = self.attacher.devices().get(&link.index);
        match (has.map(|device| device.role), role) {
            (_, Some(role)) => self.attach(link, role).await,
            (Some(Role::Net), None) => {
                let since = *self.lingering.entry(link.index).or_insert_with(Instant::now);
                if since.elapsed() >= LINGER {
                    self.lingering.remove(&link.index);
                    self.detach(link.index).await;
                }
            }
            (Some(Role::Pod), None) => self.detach(link.index).await,
            (None, None) => {}
        }
    }

    /// Says once which devices are left out because their packets have no Ethernet header.
    fn tell_left_out(&mut self) {
        let tables = self.tables.lock();
        let left_out: Vec<&Link> = tables
            .mirror
            .links()
            .filter(|link| self.selection.chooses_net(&tables.mirror, link) == NetChoice::WithoutEthernet)
            .collect();
        for link in left_out.iter().filter(|link| !self.left_out.contains(&link.index)) {
            debug!(device = link.name, "left out: its packets have no Ethernet header");
        }
        self.left_out = left_out.iter().map(|link| link.index).collect();
    }

    /// Runs until the netlink connection ends, which it does not by itself.
    pub(super) async fn run(mut self) {
        // Looking at filters is some work, and the kernel tells of those that are removed.
        let mut repair = interval(if self.removals.is_some() { 2 * REPAIR } else { REPAIR });
        repair.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Set when a repair has been brought forward.
        let mut soon = false;
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
                _ = repair.tick() => {
                    soon = false;
                    self.repair().await;
                }
                () = next_removal(&mut self.removals), if !soon => {
                    soon = true;
                    repair.reset_after(SOON);
                }
                () = self.wire.changed() => self.keep_wire(),
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
        let (mut affected, mut lost, mut addresses, mut devices) = (BTreeSet::new(), false, false, false);
        while let Some(notice) = next {
            match notice {
                Notice::Closed => return false,
                Notice::Lost => lost = true,
                Notice::Message(message) => {
                    let changed = self.follower.take_in(&mut self.tables.lock().mirror, &message);
                    self.device_changed(&changed).await;
                    addresses |= changed.addresses;
                    devices |= changed.link.is_some() || changed.gone.is_some();
                    affected.extend(changed.affected);
                }
            }
            next = self.follower.try_next();
        }
        if lost {
            warn!("the kernel dropped notifications about devices and routes: reading everything again");
            self.resync().await;
            return true;
        }
        if addresses {
            // What packets are to be given first, then the programs that give it to them.
            self.addresses.refresh(&self.selection);
            self.bring_all_up_to_date().await;
        }
        if addresses || devices {
            self.keep_wire();
        }
        self.tables.lock().refresh_ways(&affected);
        true
    }

    async fn device_changed(&mut self, changed: &Changed) {
        if let Some(index) = changed.gone {
            self.forget(index);
        }
        let Some(index) = changed.link else { return };
        let (link, role) = {
            let tables = self.tables.lock();
            let Some(link) = tables.mirror.link(index) else { return };
            (link.clone(), self.role_of(&tables.mirror, link))
        };
        // At once, and not after everything else that is to be read: a pod is waiting.
        let has = self.attacher.devices().get(&index);
        if role == Some(Role::Pod) && has.is_none_or(|has| has.name != link.name || has.role != Role::Pod) {
            self.attach(&link, Role::Pod).await;
        }
    }

    async fn attach(&mut self, link: &Link, role: Role) {
        match self.attacher.attach(link.index, &link.name, role).await {
            Ok(()) => debug!(device = link.name, interface = link.index, ?role, "programs attached"),
            // It says so itself next.
            Err(error) if error.is_of_a_gone_device() => {
                debug!(device = link.name, interface = link.index, "gone before its programs were attached");
            }
            // Tried again by `repair`.
            Err(error) => {
                warn!(device = link.name, error = &error as &dyn std::error::Error, "programs not attached");
            }
        }
    }

    async fn detach(&mut self, index: u32) {
        match self.attacher.detach(index).await {
            Ok(()) => {
                debug!(
                    interface = index,
                    "programs detached: leads neither to a pod nor out of the node any more"
                );
            }
            Err(error) => {
                warn!(interface = index, error = &error as &dyn std::error::Error, "programs not detached");
            }
        }
    }

    fn forget(&mut self, index: u32) {
        if let Err(error) = self.attacher.forget(index) {
            warn!(interface = index, error = &error as &dyn std::error::Error, "pins not removed");
        }
        self.wire.forget(index);
    }

    async fn repair(&mut self) {
        match self.attacher.repair().await {
            Ok(repaired) => {
                self.metrics.device_repairs.add(repaired.len() as u64);
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
        // Devices whose first attempt failed, and those whose time is over.
        self.bring_all_up_to_date().await;
        self.keep_wire();
        self.addresses.retry();
        let with =
            |role| self.attacher.devices().values().filter(|device| device.role == role).count() as u64;
        self.metrics.pod_devices.set(with(Role::Pod));
        self.metrics.net_devices.set(with(Role::Net));
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
