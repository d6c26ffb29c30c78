//! Which devices lead to pods (by name, or because they are ports of a pod bridge), and which lead out of the node (by
//! name, among those that have an address or a default route).

use std::fmt;
use std::str::FromStr;

use super::mirror::{Link, LinkKind, Mirror};

/// Names with `*` and `?`; a leading `!` excludes. Nothing, or `none`, matches no name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns {
    included: Vec<String>,
    excluded: Vec<String>,
}

/// The default of `--pod-devices`: what the usual network plugins call the host side.
pub const DEFAULT_POD_DEVICES: &str = "veth*,cali*,lxc*,eni*,gke*,azv*";
/// The default of `--pod-bridges`.
pub const DEFAULT_POD_BRIDGES: &str = "cni0,cbr0,docker0";
/// The default of `--net-devices`.
pub const DEFAULT_NET_DEVICES: &str = "*";
/// What stands for no device at all.
const NONE: &str = "none";

/// Longest name of a network device (`IFNAMSIZ` less the terminator).
const LONGEST_NAME: usize = 15;

impl FromStr for Patterns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut included, mut excluded) = (Vec::new(), Vec::new());
        if text.trim() == NONE {
            return Ok(Self::default());
        }
        for pattern in text.split(',').map(str::trim).filter(|pattern| !pattern.is_empty()) {
            let (list, pattern) = match pattern.strip_prefix('!') {
                Some(rest) => (&mut excluded, rest),
                None => (&mut included, pattern),
            };
            let literal = pattern.chars().filter(|c| *c != '*').count();
            if pattern.is_empty() || literal > LONGEST_NAME || pattern.contains(['/', '!', ' ']) {
                return Err(format!("`{pattern}` can be no device's name"));
            }
            list.push(pattern.to_owned());
        }
        Ok(Self { included, excluded })
    }
}

impl fmt::Display for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let excluded = self.excluded.iter().map(|pattern| format!("!{pattern}"));
        let all: Vec<String> = self.included.iter().cloned().chain(excluded).collect();
        if all.is_empty() { f.write_str(NONE) } else { f.write_str(&all.join(",")) }
    }
}

impl Patterns {
    /// True when some pattern matches and none excludes.
    pub fn matches(&self, name: &str) -> bool {
        self.included.iter().any(|pattern| matches(pattern, name)) && !self.excludes(name)
    }

    /// True when a pattern with `!` matches.
    pub fn excludes(&self, name: &str) -> bool {
        self.excluded.iter().any(|pattern| matches(pattern, name))
    }
}

/// Matches a name against a pattern in which `*` stands for any text and `?` for one character.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where to go on when the text that the last `*` stands for turns out to be longer.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((after, from)) => {
                    star = Some((after, from + 1));
                    (p, n) = (after, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// Which devices are of interest, and what they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSelection {
    /// Names of pods' devices.
    pub devices: Patterns,
    /// Names of bridges whose ports are pods' devices.
    pub bridges: Patterns,
    /// Names of network devices.
    pub net: Patterns,
}

/// What becomes of a device that may lead out of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetChoice {
    /// A network device.
    Yes,
    /// None, for an obvious reason.
    No,
    /// It would be one, but its packets have no Ethernet header, which the programs rely on.
    WithoutEthernet,
}

impl DeviceSelection {
    /// True when the device leads to a pod. `master` is the bridge it is a port of.
    pub fn selects(&self, link: &Link, master: Option<&Link>) -> bool {
        // Tunnels, bridges and network cards carry the traffic of many, whatever their name.
        if !matches!(link.kind, LinkKind::Veth | LinkKind::PodDevice) || self.devices.excludes(&link.name) {
            return false;
        }
        self.devices.matches(&link.name)
            || master
                .is_some_and(|master| master.kind == LinkKind::Bridge && self.bridges.matches(&master.name))
    }

    /// True when the device leads to a pod.
    pub fn is_pods(&self, mirror: &Mirror, link: &Link) -> bool {
        self.selects(link, link.master.and_then(|master| mirror.link(master)))
    }

    /// True for the bridge of a network plugin.
    pub fn is_pod_bridge(&self, link: &Link) -> bool {
        link.kind == LinkKind::Bridge && self.bridges.matches(&link.name)
    }

    /// Whether hosts outside are behind the device: it has an address that others see, or a default route leads over it.
    /// One that is down for the moment has its programs already when it comes up.
    pub fn chooses_net(&self, mirror: &Mirror, link: &Link) -> NetChoice {
        let addressed = || mirror.addresses_of(link.index).iter().any(|address| address.primary);
        let routed =
            || [false, true].into_iter().any(|v6| mirror.default_devices(v6).any(|it| it == link.index));
        // What comes in by a port of a bridge or bond is met at the bridge or bond.
        let is_domain = |master| mirror.link(master).is_some_and(|master| master.kind == LinkKind::Vrf);
        let no = link.loopback
            || link.kind == LinkKind::Vrf
            || link.master.is_some_and(|master| !is_domain(master))
            || !self.net.matches(&link.name)
            || self.is_pod_bridge(link)
            || self.is_pods(mirror, link)
            || !(addressed() || routed());
        match (no, link.ethernet) {
            (true, _) => NetChoice::No,
            (false, true) => NetChoice::Yes,
            (false, false) => NetChoice::WithoutEthernet,
        }
    }
}

impl Default for DeviceSelection {
    fn default() -> Self {
        let parse = |text: &str| text.parse().unwrap_or_default();
        Self {
            devices: parse(DEFAULT_POD_DEVICES),
            bridges: parse(DEFAULT_POD_BRIDGES),
            net: parse(DEFAULT_NET_DEVICES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::mirror::{LocalAddress, RouteKey, Target};
    use super::*;

    fn patterns(text: &str) -> Patterns {
        text.parse().unwrap()
    }

    #[test]
    fn globs_match_as_a_shell_would() {
        let cases = [
            ("veth*", "veth12ab", true),
            ("veth*", "veth", true),
            ("veth*", "eth0", false),
            ("*veth*", "my-veth-7", true),
            ("eth?", "eth0", true),
            ("eth?", "eth10", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("*", "anything", true),
            ("lo", "lo", true),
            ("lo", "lo0", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(patterns(pattern).matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn an_exclusion_wins_over_every_inclusion() {
        let patterns = patterns("veth*, !vethx*");
        assert!(patterns.matches("veth1") && !patterns.matches("vethx1"));
        assert_eq!(patterns.to_string(), "veth*,!vethx*");
    }

    #[test]
    fn no_pattern_matches_no_name() {
        for text in ["", " ", "none"] {
            assert!(!patterns(text).matches("none") && !patterns(text).matches("eth0"), "{text}");
            assert_eq!(patterns(text).to_string(), "none");
        }
    }

    #[test]
    fn what_can_be_no_name_is_refused() {
        for text in ["a/b", "!", "waytoolongforaname", "a b"] {
            assert!(text.parse::<Patterns>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_usual_plugins_are_known_and_their_bridges_are_not_taken_for_pods() {
        let selection = DeviceSelection::default();
        let link = |name: &str, kind| Link { name: name.to_owned(), kind, ..Link::default() };
        for name in ["veth1a2b", "cali0123456789a", "lxc_health", "eni77", "gke1", "azv1"] {
            assert!(selection.selects(&link(name, LinkKind::Veth), None), "{name}");
        }
        assert!(!selection.selects(&link("lxcbr0", LinkKind::Bridge), None));
        assert!(!selection.selects(&link("eni1", LinkKind::Ethernet), None), "an ENI is a network card");
        let port = link("p7", LinkKind::Veth);
        assert!(selection.selects(&port, Some(&link("cni0", LinkKind::Bridge))));
        assert!(!selection.selects(&port, Some(&link("br-lan", LinkKind::Bridge))));
        assert!(!selection.selects(&port, None));
    }

    fn addressed(mirror: &mut Mirror, link: Link, address: &str) {
        let address = LocalAddress {
            address: address.parse().unwrap(),
            primary: !address.starts_with("fe80"),
            created: 0,
        };
        mirror.set_address(link.index, address);
        mirror.set_link(link);
    }

    #[test]
    fn devices_that_others_reach_the_node_by_are_network_devices() {
        let mut mirror = Mirror::default();
        let link = |index, name: &str, kind| Link {
            index,
            name: name.to_owned(),
            kind,
            ethernet: true,
            ..Link::default()
        };
        let cases = [
            (link(2, "eth0", LinkKind::Ethernet), "192.0.2.1", NetChoice::Yes),
            (link(3, "eth1", LinkKind::Ethernet), "fe80::1", NetChoice::No),
            (link(4, "flannel.1", LinkKind::Tunnel), "10.244.1.0", NetChoice::Yes),
            (link(5, "br-lan", LinkKind::Bridge), "2001:db8::1", NetChoice::Yes),
            (link(6, "cni0", LinkKind::Bridge), "10.244.1.1", NetChoice::No),
            (link(7, "veth7", LinkKind::Veth), "10.244.1.1", NetChoice::No),
            (link(8, "uplink", LinkKind::Veth), "192.0.2.2", NetChoice::Yes),
            (Link { master: Some(5), ..link(9, "eth2", LinkKind::Ethernet) }, "192.0.2.3", NetChoice::No),
            (link(11, "blue", LinkKind::Vrf), "192.0.2.6", NetChoice::No),
            (Link { master: Some(11), ..link(12, "eth3", LinkKind::Ethernet) }, "192.0.2.7", NetChoice::Yes),
            (Link { loopback: true, ..link(1, "lo", LinkKind::Other) }, "192.0.2.4", NetChoice::No),
            (
                Link { ethernet: false, ..link(10, "wg0", LinkKind::Tunnel) },
                "192.0.2.5",
                NetChoice::WithoutEthernet,
            ),
        ];
        for (link, address, _) in &cases {
            addressed(&mut mirror, link.clone(), address);
        }
        let selection = DeviceSelection::default();
        for (link, _, expected) in &cases {
            assert_eq!(selection.chooses_net(&mirror, link), *expected, "{}", link.name);
        }
        let none = DeviceSelection { net: Patterns::default(), ..selection.clone() };
        let only = DeviceSelection { net: patterns("eth*"), ..selection.clone() };
        assert_eq!(none.chooses_net(&mirror, &cases[0].0), NetChoice::No);
        assert_eq!(only.chooses_net(&mirror, &cases[0].0), NetChoice::Yes);
        assert_eq!(only.chooses_net(&mirror, &cases[3].0), NetChoice::No);

        // A default route is enough, also one with several ways.
        let any = RouteKey {
            network: "::".parse().unwrap(),
            prefix: 0,
            priority: 1024,
            local_table: false,
            interface: 0,
        };
        mirror.set_route(any, Target::StackOnly);
        mirror.set_default_devices(any, vec![2, 3]);
        assert_eq!(selection.chooses_net(&mirror, &cases[1].0), NetChoice::Yes);
        mirror.remove_route(&any);
        assert_eq!(selection.chooses_net(&mirror, &cases[1].0), NetChoice::No);
    }
}
