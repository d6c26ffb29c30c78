//! Kernel settings that decide whether packets of others get through this node. Nothing is changed here: who set them may
//! have had reasons.

use std::fs;
use std::path::Path;

use super::select::DeviceSelection;
use crate::dataplane::Finding;

/// Where the settings of the network are, of the network namespace of this process.
const SYSCTLS: &str = "/proc/sys/net";

/// Checks forwarding and reverse path filtering.
pub fn check_sysctls() -> Vec<Finding> {
    let root = Path::new(SYSCTLS);
    let mut findings = vec![
        forwarding("IPv4 forwarding", root, "ipv4/ip_forward"),
        forwarding("IPv6 forwarding", root, "ipv6/conf/all/forwarding"),
    ];
    findings.push(reverse_path(root));
    findings
}

fn read(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn forwarding(check: &'static str, root: &Path, setting: &str) -> Finding {
    let name = format!("net.{}", setting.replace('/', "."));
    match read(&root.join(setting)) {
        Some(0) => Finding::limited(
            check,
            "off",
            format!(
                "sysctl {name}=1: without it pods and clients outside reach no endpoint on another node, nor node ports \
                 of this one"
            ),
        ),
        Some(_) => Finding::ok(check, "on"),
        None => Finding::limited(
            check,
            "not readable",
            format!("this kernel may lack the family; else set {name} to 1"),
        ),
    }
}

/// Devices where a packet is dropped unless the route to its sender leads over the same device (RFC 3704, strict). The
/// kernel takes the larger of the device's own setting and that of `all` (`IN_DEV_RPFILTER`).
fn strict_devices(root: &Path) -> Vec<String> {
    let conf = root.join("ipv4/conf");
    let of = |device: &str| read(&conf.join(device).join("rp_filter")).unwrap_or(0);
    let (all, pods) = (of("all"), DeviceSelection::default().devices);
    let names = fs::read_dir(&conf).into_iter().flatten();
    let mut strict: Vec<String> = names
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        // Network plugins set it for the devices of pods, whose senders are known.
        .filter(|name| !matches!(name.as_str(), "all" | "default" | "lo") && !pods.matches(name))
        .filter(|name| of(name).max(all) == 1)
        .collect();
    strict.sort_unstable();
    strict
}

fn reverse_path(root: &Path) -> Finding {
    const CHECK: &str = "reverse path filter";
    let strict = strict_devices(root);
    if strict.is_empty() {
        return Finding::ok(CHECK, "not strict");
    }
    Finding::limited(
        CHECK,
        format!("strict at {}", strict.join(", ")),
        "fine while every packet comes in by the device that the route to its sender leads over. Otherwise packets of \
         clients outside, and answers to masqueraded flows, are dropped: sysctl net.ipv4.conf.DEVICE.rp_filter=2",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::Outcome;

    fn set(root: &Path, setting: &str, value: &str) {
        let path = root.join(setting);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
    }

    #[test]
    fn a_node_that_does_not_forward_is_told_what_to_set() {
        let root = tempfile::tempdir().unwrap();
        set(root.path(), "ipv4/ip_forward", "0");
        let off = forwarding("x", root.path(), "ipv4/ip_forward");
        assert_eq!(off.outcome, Outcome::Limited);
        assert!(off.advice.unwrap().contains("net.ipv4.ip_forward=1"));
        set(root.path(), "ipv4/ip_forward", "1");
        assert_eq!(forwarding("x", root.path(), "ipv4/ip_forward").outcome, Outcome::Ok);
        assert_eq!(forwarding("x", root.path(), "ipv6/conf/all/forwarding").outcome, Outcome::Limited);
    }

    #[test]
    fn the_larger_setting_holds_and_loose_is_larger_than_strict() {
        let root = tempfile::tempdir().unwrap();
        let values =
            [("all", "0"), ("default", "1"), ("lo", "1"), ("eth0", "1"), ("eth1", "2"), ("cali1", "1")];
        for (device, value) in values {
            set(root.path(), &format!("ipv4/conf/{device}/rp_filter"), value);
        }
        assert_eq!(strict_devices(root.path()), ["eth0"]);
        assert_eq!(reverse_path(root.path()).outcome, Outcome::Limited);
        set(root.path(), "ipv4/conf/all/rp_filter", "2");
        assert_eq!(reverse_path(root.path()).outcome, Outcome::Ok);
        set(root.path(), "ipv4/conf/all/rp_filter", "1");
        set(root.path(), "ipv4/conf/eth0/rp_filter", "0");
        assert_eq!(strict_devices(root.path()), ["eth0"]);
    }
}
