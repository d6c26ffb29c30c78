//! Devices with the programs that they have and lack.

use std::fs;

use serde::Serialize;

use crate::dataplane::{Attachments, Hook, Role, Via, XdpLink};
use crate::net::{DeviceSelection, Link, Mirror, NetChoice};

/// A device that has programs, or is to have them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Name.
    pub name: String,
    /// Interface index.
    pub interface: u32,
    /// `pod` or `network`.
    pub role: &'static str,
    /// How its programs are attached: `tcx` or `tc`; `null` when it has none.
    pub via: Option<Via>,
    /// Where its XDP program runs: `native` or `generic`; `null` when it has none.
    pub xdp: Option<&'static str>,
    /// Programs that it has.
    pub programs: Vec<&'static str>,
    /// Programs that it lacks.
    pub missing: Vec<&'static str>,
}

/// Every device that matters, by name.
pub(super) fn list(
    mirror: &Mirror,
    attached: &Attachments,
    xdp: &[XdpLink],
    selection: &DeviceSelection,
) -> Vec<Device> {
    let device = |link: &Link| {
        let has = |hook: &Hook| attached.devices.contains_key(&(link.index, *hook));
        let programs: Vec<Hook> = Hook::ALL.into_iter().filter(has).collect();
        let wanted = if selection.is_pods(mirror, link) {
            Some(Role::Pod)
        } else {
            (selection.chooses_net(mirror, link) == NetChoice::Yes).then_some(Role::Net)
        };
        let found = programs.first().map(|hook| match hook {
            Hook::FromPod | Hook::ToPod => Role::Pod,
            Hook::FromNet | Hook::ToNet => Role::Net,
        });
        let role = wanted.or(found)?;
        let missing = role.hooks().into_iter().filter(|hook| !programs.contains(hook));
        Some(Device {
            name: link.name.clone(),
            interface: link.index,
            role: match role {
                Role::Pod => "pod",
                Role::Net => "network",
            },
            via: programs
                .first()
                .and_then(|hook| attached.devices.get(&(link.index, *hook)))
                .map(|(via, _)| *via),
            xdp: xdp
                .iter()
                .find(|found| found.interface == link.index && found.program.is_some())
                .map(|found| found.place.name()),
            programs: programs.iter().map(|hook| hook.program()).collect(),
            missing: missing.map(Hook::program).collect(),
        })
    };
    let mut devices: Vec<Device> = mirror.links().filter_map(device).collect();
    devices.sort_by(|a, b| (a.role, &a.name).cmp(&(b.role, &b.name)));
    devices
}

/// Seconds since the youngest program was loaded.
pub(super) fn youngest(attached: &Attachments) -> Option<u64> {
    let loaded = attached.devices.values().map(|(_, program)| program.loaded_seconds()).max()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let now: f64 = uptime.split(' ').next()?.parse().ok()?;
    Some((now as u64).saturating_sub(loaded))
}
