//! What the XDP program needs of the world: devices, routes and neighbours, in a namespace of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use aya::maps::xdp::DevMapHash;
use aya::maps::{Array, PerCpuArray};
use aya::programs::{TestRun as _, TestRunOptions};
use lb_common::layout::{WireDevices, WireStat};

use super::packet::{Mac, Packet};
use super::{Datapath, Outcome, Program, Verdict};
use crate::netns::links::VethEnd;
use crate::netns::{Namespace, sys, write_sysctl};

/// A device of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The network device that packets come by, and the default way out.
    One,
    /// Another network device.
    Two,
    /// A pod's.
    Pod,
}

impl Device {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::One, Self::Two, Self::Pod];

    /// Its interface index.
    pub const fn index(self) -> u32 {
        match self {
            Self::One => 101,
            Self::Two => 102,
            Self::Pod => 103,
        }
    }

    /// Its MAC address.
    pub const fn mac(self) -> Mac {
        [2, 0, 0, 0, 0xa, self.index() as u8]
    }

    /// The MAC address at its other end: of the gateway, or of the pod.
    pub const fn far_mac(self) -> Mac {
        match self {
            Self::Pod => super::case::BACKEND_MAC,
            _ => [2, 0, 0, 0, 0xb, self.index() as u8],
        }
    }

    /// Bytes of the longest packet that fits, IP header and all.
    pub const fn mtu(self) -> u32 {
        match self {
            Self::One => 1500,
            Self::Two => 1400,
            Self::Pod => 1300,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Two => "two",
            Self::Pod => "pod",
        }
    }

    /// The network of the node and its gateway at a network device.
    fn network(self, v6: bool, host: u8) -> IpAddr {
        let number = self.index() as u8;
        if v6 {
            Ipv6Addr::new(0xfd01, 0, 0, number.into(), 0, 0, 0, host.into()).into()
        } else {
            Ipv4Addr::new(192, 0, number, host).into()
        }
    }

    /// The gateway that it leads to.
    pub fn gateway(self, v6: bool) -> IpAddr {
        self.network(v6, 9)
    }
}

/// A node's devices and routes. The thread that makes it is in its namespace from then on.
pub struct Wires {
    near: Namespace,
    _far: Namespace,
}

impl Wires {
    /// Makes the namespaces and moves this thread into the node's.
    ///
    /// # Errors
    /// Missing privileges.
    pub fn enter() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |end: &str| format!("lbt-wire-{}-{number}-{end}", std::process::id());
        let sysctls = [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv6/conf/default/forwarding", "1"),
            ("net/ipv6/conf/default/accept_dad", "0"),
        ];
        let near = Namespace::create(&name("near"), &sysctls)?;
        let far = Namespace::create(&name("far"), &[])?;
        let wires = Self { near, _far: far };
        wires.near.block_on({
            let (near, far) = (wires.near.clone(), wires._far.clone());
            async move {
                for device in Device::ALL {
                    let (index, name) = (device.index(), device.name());
                    let one = VethEnd { name, index, mac: device.mac(), bridge: None };
                    let other = VethEnd { name, index, mac: device.far_mac(), bridge: None };
                    near.links().add_veth(one, other, &far, device.mtu()).await?;
                    if device == Device::Pod {
                        continue;
                    }
                    for (v6, prefix) in [(false, 24), (true, 64)] {
                        near.links().add_address(index, device.network(v6, 2), prefix).await?;
                        near.links().add_neighbour(index, device.gateway(v6), device.far_mac()).await?;
                    }
                }
                for unspecified in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
                    let gateway = Device::One.gateway(unspecified.is_ipv6());
                    near.links().add_route(unspecified, 0, Some(gateway), Device::One.index()).await?;
                }
                anyhow::Ok(())
            }
        })?;
        sys::enter_netns(std::os::fd::AsFd::as_fd(wires.near.file()))?;
        Ok(wires)
    }

    /// Lets packets to an address leave by a device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lead(&self, address: IpAddr, device: Device) -> Result<()> {
        let links = self.near.links();
        self.near.block_on(async move {
            let prefix = if address.is_ipv6() { 128 } else { 32 };
            if device == Device::Pod {
                links.add_route(address, prefix, None, device.index()).await?;
                return links.add_neighbour(device.index(), address, device.far_mac()).await;
            }
            links.add_route(address, prefix, Some(device.gateway(address.is_ipv6())), device.index()).await
        })
    }

    /// Takes the route to an address away.
    ///
    /// # Errors
    /// When there is none.
    pub fn lose(&self, address: IpAddr) -> Result<()> {
        self.ip(&["route", "del", &host(address)])
    }

    /// Lets packets to an address go nowhere.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forbid(&self, address: IpAddr) -> Result<()> {
        self.ip(&["route", "add", "blackhole", &host(address)])
    }

    /// Lets packets to an address leave by a device where nobody knows it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lead_unknown(&self, address: IpAddr, device: Device) -> Result<()> {
        self.ip(&["route", "add", &host(address), "dev", device.name()])
    }

    /// The default routes, anew.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn restore(&self) -> Result<()> {
        for v6 in [false, true] {
            let gateway = Device::One.gateway(v6).to_string();
            let family = if v6 { "-6" } else { "-4" };
            self.ip(&[family, "route", "replace", "default", "via", &gateway, "dev", Device::One.name()])?;
        }
        Ok(())
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new("ip").arg("-n").arg(self.near.name()).args(arguments).output()?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ip {}: {words}", arguments.join(" "));
        Ok(())
    }

    /// Writes a sysctl of the node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        write_sysctl(key, value)
    }
}

impl Packet {
    /// The packet as a router sends it on: with a hop less to live, between two machines.
    #[must_use]
    pub fn forwarded(&self, eth_src: Mac, eth_dst: Mac) -> Self {
        Self { ttl: self.ttl - 1, eth_src, eth_dst, ..self.clone() }
    }
}

impl Datapath {
    /// Lets the XDP program hand frames to these devices, and no others.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take_frames(&mut self, devices: &[Device]) -> Result<()> {
        let map = self.ebpf.map_mut("XDP_DEVICES").context("map XDP_DEVICES")?;
        let mut map: DevMapHash<_> = map.try_into()?;
        for device in Device::ALL {
            for key in [device.index(), WireDevices::back(device.index())] {
                // That there is none is what is wanted.
                let _absent = map.remove(key);
                if devices.contains(&device) {
                    map.insert(key, device.index(), None, 0)?;
                }
            }
        }
        Ok(())
    }

    /// Lets the XDP program hand frames to the device of that index, too: they go nowhere.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take_frames_at(&mut self, index: u32) -> Result<()> {
        let map = self.ebpf.map_mut("XDP_DEVICES").context("map XDP_DEVICES")?;
        Ok(DevMapHash::try_from(map)?.insert(index, Device::Pod.index(), None, 0)?)
    }

    /// From now on the XDP program meets packets at that device.
    pub fn comes_by(&mut self, device: Device) {
        self.ingress = device;
    }

    /// Packets that the XDP program sent on, in the order of [`WireStat::ALL`].
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn sent_on(&self) -> Result<[u64; WireStat::COUNTERS as usize]> {
        let map = self.ebpf.map("WIRE_STATS").context("map WIRE_STATS")?;
        let counters = PerCpuArray::<_, u64>::try_from(map)?;
        let mut sums = [0; WireStat::COUNTERS as usize];
        for stat in WireStat::ALL {
            sums[stat as usize] = counters.get(&(stat as u32), 0)?.iter().sum();
        }
        Ok(sums)
    }

    /// Bytes of the XDP program's flow cache, of both families.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn forget_wire_flows(&mut self) -> Result<()> {
        let mut four: Array<_, [[u8; 80]; 2]> =
            self.ebpf.map_mut("WIRE_FLOWS4").context("map WIRE_FLOWS4")?.try_into()?;
        for set in 0..four.len() {
            four.set(set, [[0; 80]; 2], 0)?;
        }
        let mut six: Array<_, [[u8; 128]; 2]> =
            self.ebpf.map_mut("WIRE_FLOWS6").context("map WIRE_FLOWS6")?.try_into()?;
        for set in 0..six.len() {
            six.set(set, [[0; 128]; 2], 0)?;
        }
        Ok(())
    }

    pub(super) fn run_wire(&self, packet: &[u8]) -> Result<Outcome> {
        let mut out = vec![0; packet.len() + 256];
        let context = context(self.ingress, packet.len() as u32);
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let result = self.wire()?.test_run(options)?;
        let (value, length) = (result.return_value, result.data_size_out as usize);
        ensure!(length == packet.len(), "a frame of {} bytes became one of {length}", packet.len());
        out.truncate(length);
        Ok(Outcome { verdict: Verdict::of(Program::FromWire, value)?, packet: out })
    }
}

/// The network of one address alone.
fn host(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv6() { 128 } else { 32 })
}

/// `struct xdp_md` (include/uapi/linux/bpf.h) of a frame that came by a device.
pub(crate) fn context(device: Device, length: u32) -> Vec<u8> {
    [0, length, 0, device.index(), 0, 0].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect()
}
