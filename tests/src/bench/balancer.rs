//! What a node's Services can be served by, installed on a node of the lab: nothing, the rules that kube-proxy writes, or the
//! agent.

mod agent;
mod iptables;
mod nftables;
mod services;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

pub(in crate::bench) use self::agent::{
    ready as agent_ready, running as running_agent, start as start_agent,
};
pub use self::services::{DIRECT_PORT, SERVER_PORTS, Services};
use crate::lab::{Lab, Node};

/// How long rules may take to be loaded: ten thousand Services take nft some ten seconds on an idle machine.
const LOAD_LIMIT: Duration = Duration::from_secs(240);

/// Where pods' addresses come from, as kube-proxy is told it (`--cluster-cidr`).
const POD_RANGE: &str = "10.244.0.0/16";

/// So many Services as nftables and as iptables are told them.
pub(in crate::bench) fn rules(count: u32) -> [String; 2] {
    let services = Services::new(count, IpAddr::from([10, 244, 0, 2]));
    [nftables::rules(&services, POD_RANGE), iptables::rules(&services, POD_RANGE)]
}

/// What serves, and for how many Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balancer {
    /// Nothing: clients connect to the server itself.
    None,
    /// iptables rules, of the kernel's own iptables (`iptables-legacy`).
    Iptables(u32),
    /// nftables rules.
    Nftables(u32),
    /// The agent, and how packets are forwarded.
    Agent(Forwarding, u32),
    /// The agent, translating when a socket connects, pods' sockets as well.
    Sockets(u32),
}

/// How the agent's programs forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// Through the host's stack.
    Stack,
    /// Straight to the endpoint's device.
    Redirect,
}

impl fmt::Display for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::None => return f.write_str("no load balancer"),
            Self::Iptables(_) => "iptables",
            Self::Nftables(_) => "nftables",
            Self::Agent(Forwarding::Stack, _) => "stack",
            Self::Agent(Forwarding::Redirect, _) => "redirect",
            Self::Sockets(_) => "at connect",
        };
        write!(f, "{name}, {}", self.count())
    }
}

/// A number of Services, in words.
pub struct Count(u32);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0 == 1 { "" } else { "s" };
        match (self.0 / 1000, self.0 % 1000) {
            (0, few) => write!(f, "{few} Service{plural}"),
            (thousands, rest) => write!(f, "{thousands},{rest:03} Service{plural}"),
        }
    }
}

impl Balancer {
    /// How many Services there are.
    pub fn services(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Iptables(services)
            | Self::Nftables(services)
            | Self::Agent(_, services)
            | Self::Sockets(services) => services,
        }
    }

    /// That in words.
    pub fn count(self) -> Count {
        Count(self.services())
    }

    /// Where a client reaches the server at `server`.
    pub fn target(self, server: IpAddr) -> SocketAddr {
        match self {
            Self::None => SocketAddr::new(server, DIRECT_PORT),
            _ => Services::MEASURED,
        }
    }

    /// Installs it on a node whose server is at `server`. An agent has done its work and ended when this returns; what
    /// the kernel has from it stays, and no thread of it disturbs a measurement.
    ///
    /// # Errors
    /// A program is missing, or the kernel refuses rules or programs.
    pub fn install(self, lab: &Lab, node: &Node, server: IpAddr) -> Result<()> {
        let services = Services::new(self.services(), server);
        match self {
            Self::None => Ok(()),
            Self::Iptables(_) => {
                // Others may be at it, each in a network of its own, and one lock for all.
                load(
                    lab,
                    node,
                    &["iptables-legacy-restore", &format!("--wait={}", LOAD_LIMIT.as_secs())],
                    &iptables::rules(&services, POD_RANGE),
                )
            }
            Self::Nftables(_) => load(lab, node, &["nft", "-f"], &nftables::rules(&services, POD_RANGE)),
            Self::Agent(forwarding, _) => agent::install(lab, node, &services, forwarding, "host"),
            Self::Sockets(_) => agent::install(lab, node, &services, Forwarding::Stack, "all"),
        }
        .with_context(|| format!("installing {self} on {}", node.name()))
    }
}

/// Gives rules to a program as a file, its last argument.
fn load(lab: &Lab, node: &Node, argv: &[&str], rules: &str) -> Result<()> {
    let path: PathBuf = lab.state_dir().join(format!("{}.rules", node.name()));
    std::fs::write(&path, rules).with_context(|| format!("write {}", path.display()))?;
    let mut argv: Vec<String> = argv.iter().map(|argument| (*argument).to_owned()).collect();
    argv.push(path.to_string_lossy().into_owned());
    let own = node.clone();
    let output = node.namespace().block_on(async move {
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        own.exec(&argv, &[], LOAD_LIMIT).await
    })?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
