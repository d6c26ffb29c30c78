//! What a lab looks like: families, CNI shapes, address plan, DNS settings.

use std::{fmt::Write, net::IpAddr};

use super::cidr::Cidr;

/// The address families of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Family {
    /// IPv4 only.
    #[default]
    V4,
    /// IPv6 only.
    V6,
    /// Both, IPv4 first.
    Dual,
}

impl Family {
    /// All of them, for tests of every shape and family.
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Dual];

    /// Whether IPv4 is part of it.
    pub fn has_v4(self) -> bool {
        self != Self::V6
    }

    /// Whether IPv6 is part of it.
    pub fn has_v6(self) -> bool {
        self != Self::V4
    }
}

/// How a CNI plugin connects pods to their node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// As Calico does: a host-side device `cali…` per pod, pod addresses `/32` and `/128`, a link-local gateway answered
    /// by the host, one host route per pod, routes to the other nodes' pod CIDRs.
    #[default]
    Routed,
    /// As flannel does (host-gw): the bridge `cni0` with the gateway address, pods on bridge ports `veth…`, routes to the
    /// other nodes' pod CIDRs.
    Bridged,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Routed, Self::Bridged];
}

/// How nodes reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Underlay {
    /// A switch (a bridge in a namespace of its own) that all nodes and clients are plugged into; it is also the
    /// nodes' default router and answers that what lies outside is unreachable.
    #[default]
    Switch,
    /// One veth pair between exactly two nodes: nothing in between, for measurements. No clients.
    Direct,
}

/// Settings of a whole lab; see [`super::LabBuilder`].
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) shape: Shape,
    pub(crate) family: Family,
    pub(crate) underlay: Underlay,
    pub(crate) mtu: u32,
    /// Devices are like cards, see [`super::LabBuilder::cards`].
    pub(crate) cards: bool,
    pub(crate) pod_v4: Cidr,
    pub(crate) pod_v6: Cidr,
    pub(crate) node_v4: Cidr,
    pub(crate) node_v6: Cidr,
    pub(crate) service_cidrs: Vec<Cidr>,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) cluster_domain: String,
}

impl Config {
    /// The underlay's address ranges, IPv4 first.
    pub(crate) fn underlay_ranges(&self) -> Vec<Cidr> {
        self.of_family(self.node_v4, self.node_v6)
    }

    /// The pod CIDRs of the node with this number (from 1): a /24 and a /64 each.
    pub(crate) fn pod_ranges(&self, number: u32) -> anyhow::Result<Vec<Cidr>> {
        let v4 = Cidr::new(self.pod_v4.nth(number << 8), 24)?;
        let IpAddr::V6(base) = self.pod_v6.address() else { anyhow::bail!("{} is not IPv6", self.pod_v6) };
        let v6 = Cidr::new(IpAddr::V6((base.to_bits() + (u128::from(number) << 64)).into()), 64)?;
        Ok(self.of_family(v4, v6))
    }

    fn of_family(&self, v4: Cidr, v6: Cidr) -> Vec<Cidr> {
        match self.family {
            Family::V4 => vec![v4],
            Family::V6 => vec![v6],
            Family::Dual => vec![v4, v6],
        }
    }
}

/// The DNS settings of a pod: the content of its `/etc/resolv.conf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// Name servers.
    pub nameservers: Vec<IpAddr>,
    /// Search domains.
    pub searches: Vec<String>,
    /// How many dots make a name absolute.
    pub ndots: usize,
}

impl ResolvConf {
    /// What a kubelet writes for a pod with `dnsPolicy: ClusterFirst`.
    pub fn cluster_first(nameservers: Vec<IpAddr>, namespace: &str, domain: &str) -> Self {
        let searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
        Self { nameservers, searches, ndots: 5 }
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for server in &self.nameservers {
            // Writing to a string does not fail.
            let _written = writeln!(text, "nameserver {server}");
        }
        if !self.searches.is_empty() {
            let _written = writeln!(text, "search {}", self.searches.join(" "));
        }
        let _written = writeln!(text, "options ndots:{}", self.ndots);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::ResolvConf;

    #[test]
    fn resolv_conf_is_what_a_kubelet_writes() {
        let conf =
            ResolvConf::cluster_first(vec!["10.96.0.10".parse().unwrap()], "snackbar", "cluster.local");
        assert_eq!(
            conf.text(),
            "nameserver 10.96.0.10\nsearch snackbar.svc.cluster.local svc.cluster.local cluster.local\n\
             options ndots:5\n"
        );
    }
}
