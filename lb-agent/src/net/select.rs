//! Which devices lead to pods: by name, or because they are ports of a pod bridge.

use std::fmt;
use std::str::FromStr;

use super::mirror::{Link, LinkKind};

/// Names with `*` and `?`; a leading `!` excludes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patterns {
    included: Vec<String>,
    excluded: Vec<String>,
}

/// The default of `--pod-devices`: what the usual network plugins call the host side.
pub const DEFAULT_POD_DEVICES: &str = "veth*,cali*,lxc*,eni*,gke*,azv*";
/// The default of `--pod-bridges`.
pub const DEFAULT_POD_BRIDGES: &str = "cni0,cbr0,docker0";

/// Longest name of a network device (`IFNAMSIZ` less the terminator).
const LONGEST_NAME: usize = 15;

impl FromStr for Patterns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut included, mut excluded) = (Vec::new(), Vec::new());
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
        f.write_str(&all.join(","))
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

/// Which devices are pods'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSelection {
    /// Names of devices.
    pub devices: Patterns,
    /// Names of bridges whose ports are pods' devices.
    pub bridges: Patterns,
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
}

impl Default for DeviceSelection {
    fn default() -> Self {
        let parse = |text: &str| text.parse().unwrap_or(Patterns { included: vec![], excluded: vec![] });
        Self { devices: parse(DEFAULT_POD_DEVICES), bridges: parse(DEFAULT_POD_BRIDGES) }
    }
}

#[cfg(test)]
mod tests {
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
}
