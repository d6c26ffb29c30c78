//! A pod: a network namespace behind its node, with addresses, DNS settings and environment.

use std::{
    fs,
    net::IpAddr,
    path::PathBuf,
    process::{Command, Output},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use anyhow::Context;

use super::{
    config::ResolvConf,
    node::{Node, NodeInner},
    process::{self, Process, Surroundings},
    run::Run,
    wiring::HostDevice,
};
use crate::netns::{Namespace, lock};

/// What a pod shall be like. Start from [`PodSpec::new`].
#[derive(Debug, Clone)]
pub struct PodSpec {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) dns: Option<ResolvConf>,
}

impl PodSpec {
    /// A pod in Kubernetes namespace `default` with allocated addresses and the lab's DNS settings.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            namespace: "default".to_owned(),
            addresses: Vec::new(),
            env: Vec::new(),
            dns: None,
        }
    }

    /// The Kubernetes namespace: decides the search domains.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Fixed addresses instead of allocated ones. They may be outside the node's pod CIDR in the routed shape.
    #[must_use]
    pub fn addresses(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.addresses = addresses.into_iter().collect();
        self
    }

    /// Environment variables of everything executed in the pod.
    #[must_use]
    pub fn env(mut self, env: impl IntoIterator<Item = (String, String)>) -> Self {
        self.env.extend(env);
        self
    }

    /// DNS settings other than the lab's.
    #[must_use]
    pub fn dns(mut self, dns: ResolvConf) -> Self {
        self.dns = Some(dns);
        self
    }
}

/// A running pod; clones are handles to the same one. It lives until [`Pod::remove`], or as long as its lab.
///
/// It can be passed wherever a place in the network is wanted (`impl AsRef<Namespace>`), such as
/// [`crate::workload::http_get`].
#[derive(Clone)]
pub struct Pod(pub(crate) Arc<PodInner>);

pub(crate) struct PodInner {
    pub(crate) name: String,
    pub(crate) kube_namespace: String,
    pub(crate) namespace: Namespace,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) device: HostDevice,
    pub(crate) env: Mutex<Vec<(String, String)>>,
    pub(crate) resolv_conf: PathBuf,
    pub(crate) cgroup: PathBuf,
    pub(crate) node: Weak<NodeInner>,
    pub(crate) run: Arc<Run>,
}

impl Pod {
    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The Kubernetes namespace.
    pub fn kube_namespace(&self) -> &str {
        &self.0.kube_namespace
    }

    /// The network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    /// All addresses, IPv4 first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.0.addresses
    }

    /// The primary address.
    pub fn address(&self) -> IpAddr {
        self.0.addresses[0]
    }

    /// The IPv4 address, if the pod has one.
    pub fn ipv4(&self) -> Option<IpAddr> {
        self.0.addresses.iter().copied().find(IpAddr::is_ipv4)
    }

    /// The IPv6 address, if the pod has one.
    pub fn ipv6(&self) -> Option<IpAddr> {
        self.0.addresses.iter().copied().find(IpAddr::is_ipv6)
    }

    /// The pod's device as the node sees it.
    pub fn host_device(&self) -> &HostDevice {
        &self.0.device
    }

    /// The environment of what is executed in the pod.
    pub fn env(&self) -> Vec<(String, String)> {
        lock(&self.0.env).clone()
    }

    /// Replaces the environment of what is executed in the pod from now on.
    pub fn set_env(&self, env: Vec<(String, String)>) {
        *lock(&self.0.env) = env;
    }

    /// One environment variable.
    pub fn env_var(&self, name: &str) -> Option<String> {
        // The last one wins, as in a process's environment built in this order.
        lock(&self.0.env).iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }

    /// The node it runs on; `None` once the lab is gone.
    pub fn node(&self) -> Option<Node> {
        self.0.node.upgrade().map(Node)
    }

    /// Runs a program in the pod (its network, its `/etc/resolv.conf`, its environment, its node's cgroup) to the end;
    /// kills it after `limit`.
    ///
    /// # Errors
    /// The program cannot be started, or the time was over. An exit code other than 0 is no error.
    pub async fn exec(&self, argv: &[&str], env: &[(&str, &str)], limit: Duration) -> anyhow::Result<Output> {
        process::output(self.command(argv, env)?, limit).await
    }

    /// Starts a program in the pod and leaves it running; its output goes to a log file.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(&self, argv: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Process> {
        let program = argv.first().and_then(|program| program.rsplit('/').next()).unwrap_or("process");
        let log = self.0.run.state().join("logs").join(format!("{}-{program}.log", self.0.namespace.name()));
        Process::start(self.command(argv, env)?, &self.0.run, log)
    }

    /// The prepared command behind [`Pod::exec`] and [`Pod::spawn`], for callers that handle input and output themselves.
    ///
    /// # Errors
    /// `argv` is empty, or the pod is gone.
    pub fn command(&self, argv: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Command> {
        let argv: Vec<String> = argv.iter().map(|argument| (*argument).to_owned()).collect();
        let mut all = self.env();
        all.extend(env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let surroundings =
            Surroundings { resolv_conf: Some(&self.0.resolv_conf), cgroup: Some(&self.0.cgroup) };
        process::command(&self.0.namespace, &surroundings, &argv, &all)
    }

    /// Removes the pod: its device, its routes, its namespace. Removing it twice is no error.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove(&self) -> anyhow::Result<()> {
        match self.node() {
            Some(node) => node.remove_pod(self),
            None => Ok(()),
        }
    }
}

impl AsRef<Namespace> for Pod {
    fn as_ref(&self) -> &Namespace {
        &self.0.namespace
    }
}

impl std::fmt::Debug for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pod").field("name", &self.name()).field("addresses", &self.addresses()).finish()
    }
}

/// Writes the `/etc/netns/<namespace>/resolv.conf` that `ip netns exec` and [`Pod::exec`] show to programs.
pub(crate) fn write_resolv_conf(namespace: &str, conf: &ResolvConf) -> anyhow::Result<PathBuf> {
    let directory = PathBuf::from("/etc/netns").join(namespace);
    let path = directory.join("resolv.conf");
    fs::create_dir_all(&directory)
        .and_then(|()| fs::write(&path, conf.text()))
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
