//! A node: a network namespace that routes between its pods and the underlay.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Output,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, ensure};

use super::{
    cidr::Cidr,
    config::{Config, ResolvConf},
    pod::{Pod, PodInner, PodSpec, write_resolv_conf},
    process::{self, Process, Surroundings},
    run::Run,
    wiring::{self, FIRST_POD_DEVICE, HostDevice},
};
use crate::netns::{Namespace, lock};

/// A node; clones are handles to the same one. It lives as long as its lab.
///
/// It can be passed wherever a place in the network is wanted (`impl AsRef<Namespace>`): that is a host-network process.
#[derive(Clone)]
pub struct Node(pub(crate) Arc<NodeInner>);

pub(crate) struct NodeInner {
    pub(crate) name: String,
    pub(crate) number: u32,
    pub(crate) zone: Option<String>,
    pub(crate) namespace: Namespace,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) pod_cidrs: Vec<Cidr>,
    pub(crate) cgroup: PathBuf,
    pub(crate) bpffs: PathBuf,
    pub(crate) config: Arc<Config>,
    pub(crate) run: Arc<Run>,
    pub(crate) state: Mutex<State>,
}

/// What changes while the node stands.
#[derive(Default)]
pub(crate) struct State {
    pods: BTreeMap<String, Pod>,
    devices: u32,
    /// How many addresses were handed out: the next one comes after the last, so that none returns soon.
    handed_out: u32,
    pub(crate) agents: u32,
}

impl Node {
    /// The node's name (`n1`).
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The node's number, from 1.
    pub fn number(&self) -> u32 {
        self.0.number
    }

    /// `topology.kubernetes.io/zone`.
    pub fn zone(&self) -> Option<&str> {
        self.0.zone.as_deref()
    }

    /// The network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    /// The node's own addresses, IPv4 first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.0.addresses
    }

    /// The primary address.
    pub fn address(&self) -> IpAddr {
        self.0.addresses[0]
    }

    /// The ranges its pods get their addresses from, IPv4 first.
    pub fn pod_cidrs(&self) -> &[Cidr] {
        &self.0.pod_cidrs
    }

    /// The node's cgroup v2 directory: programs executed on the node and in its pods are members.
    pub fn cgroup(&self) -> &Path {
        &self.0.cgroup
    }

    /// The node's directory on the bpffs, where its agent pins programs and tables.
    pub fn bpffs(&self) -> &Path {
        &self.0.bpffs
    }

    /// Adds a pod with the lab's defaults.
    ///
    /// # Errors
    /// As [`Node::add_pod`].
    pub fn pod(&self, name: &str) -> anyhow::Result<Pod> {
        self.add_pod(PodSpec::new(name))
    }

    /// Adds a pod. Takes some milliseconds and blocks the calling thread as long.
    ///
    /// # Errors
    /// A pod of that name runs on this node, no address is left, or the kernel refused.
    pub fn add_pod(&self, spec: PodSpec) -> anyhow::Result<Pod> {
        let NodeInner { namespace: node, config, run, .. } = &*self.0;
        let PodSpec { name, namespace: kube_namespace, addresses, env, dns } = spec;
        let key = format!("{kube_namespace}/{name}");
        let (device, addresses) = self.reserve(&key, addresses)?;
        let pod_name =
            if kube_namespace == "default" { name.clone() } else { format!("{kube_namespace}.{name}") };
        let full = format!("{}-{}-p-{pod_name}", run.prefix(), self.name());
        let namespace = Namespace::create(&full, &wiring::host_sysctls())?;
        let connect = wiring::connect_pod(
            config.shape,
            config.mtu,
            node.clone(),
            namespace.clone(),
            device.clone(),
            addresses.clone(),
            self.0.pod_cidrs.clone(),
        );
        let dns = dns.unwrap_or_else(|| self.cluster_dns(&kube_namespace));
        let resolv_conf = write_resolv_conf(&full, &dns)?;
        let pod = Pod(Arc::new(PodInner {
            name,
            kube_namespace,
            namespace: namespace.clone(),
            addresses,
            device,
            env: Mutex::new(env),
            resolv_conf,
            cgroup: self.0.cgroup.clone(),
            node: Arc::downgrade(&self.0),
            run: Arc::clone(run),
        }));
        if run.is_kept() {
            namespace.keep();
        }
        lock(&self.0.state).pods.insert(key, pod.clone());
        if let Err(error) = namespace.block_on(connect) {
            // The first error is the one to report.
            let _half_made = self.remove_pod(&pod);
            return Err(error.context(format!("connecting pod {}", pod.name())));
        }
        if config.cards {
            wiring::offloads(&namespace, "eth0", &["gro", "on"])?;
        }
        Ok(pod)
    }

    /// Picks the device and the addresses of a new pod.
    fn reserve(&self, key: &str, fixed: Vec<IpAddr>) -> anyhow::Result<(HostDevice, Vec<IpAddr>)> {
        let mut state = lock(&self.0.state);
        ensure!(!state.pods.contains_key(key), "pod {key} runs on node {} already", self.name());
        let index = FIRST_POD_DEVICE + state.devices;
        state.devices += 1;
        let device = HostDevice::plan(self.0.config.shape, self.0.number, index, key);
        if !fixed.is_empty() {
            return Ok((device, fixed));
        }
        // The first address is the gateway's.
        let hosts = self.0.pod_cidrs.iter().map(Cidr::hosts).min().unwrap_or_default().saturating_sub(1);
        for _ in 0..hosts {
            let host = 2 + state.handed_out % hosts;
            state.handed_out = state.handed_out.wrapping_add(1);
            let addresses: Vec<IpAddr> = self.0.pod_cidrs.iter().map(|cidr| cidr.nth(host)).collect();
            let taken = |pod: &Pod| pod.addresses().iter().any(|address| addresses.contains(address));
            if !state.pods.values().any(taken) {
                return Ok((device, addresses));
            }
        }
        anyhow::bail!("node {} has no free pod address", self.name())
    }

    /// The pods that run here, by Kubernetes namespace and name.
    pub fn pods(&self) -> Vec<Pod> {
        lock(&self.0.state).pods.values().cloned().collect()
    }

    /// Removes a pod; see [`Pod::remove`].
    pub(crate) fn remove_pod(&self, pod: &Pod) -> anyhow::Result<()> {
        let key = format!("{}/{}", pod.kube_namespace(), pod.name());
        {
            let mut state = lock(&self.0.state);
            match state.pods.get(&key) {
                Some(known) if Arc::ptr_eq(&known.0, &pod.0) => state.pods.remove(&key),
                _ => return Ok(()),
            };
        }
        let (links, index) = (self.0.namespace.links(), pod.host_device().index);
        let removed = self.0.namespace.block_on(async move {
            // A pod that could not be connected has no device.
            if links.get(index).await.is_ok() { links.delete(index).await } else { Ok(()) }
        });
        if let Some(directory) = pod.0.resolv_conf.parent() {
            fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))?;
        }
        pod.namespace().remove();
        removed
    }

    /// Runs a program on the node (its network, its cgroup) to the end; kills it after `limit`.
    ///
    /// # Errors
    /// The program cannot be started, or the time was over. An exit code other than 0 is no error.
    pub async fn exec(&self, argv: &[&str], env: &[(&str, &str)], limit: Duration) -> anyhow::Result<Output> {
        process::output(self.prepare(argv, env)?, limit).await
    }

    /// Starts a program on the node and leaves it running; its output is appended to the log file `name`.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(&self, argv: &[&str], env: &[(&str, &str)], name: &str) -> anyhow::Result<Process> {
        let log = self.log_dir().join(format!("{}-{name}.log", self.name()));
        Process::start(self.prepare(argv, env)?, &self.0.run, log)
    }

    /// The prepared command behind [`Node::exec`] and [`Node::spawn`].
    pub(crate) fn prepare(
        &self,
        argv: &[&str],
        env: &[(&str, &str)],
    ) -> anyhow::Result<std::process::Command> {
        let argv: Vec<String> = argv.iter().map(|argument| (*argument).to_owned()).collect();
        let env: Vec<(String, String)> =
            env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let surroundings = Surroundings { resolv_conf: None, cgroup: Some(&self.0.cgroup) };
        process::command(&self.0.namespace, &surroundings, &argv, &env)
    }

    /// Where logs of this lab's processes go.
    pub fn log_dir(&self) -> PathBuf {
        self.0.run.state().join("logs")
    }

    /// The DNS settings of the pods of a Kubernetes namespace.
    pub fn cluster_dns(&self, kube_namespace: &str) -> ResolvConf {
        let config = &self.0.config;
        ResolvConf::cluster_first(config.dns.clone(), kube_namespace, &config.cluster_domain)
    }

    /// Adds a route on the node, e.g. to a range behind a client.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn add_route(&self, to: Cidr, via: IpAddr) -> anyhow::Result<()> {
        let links = self.0.namespace.links();
        self.0.namespace.block_on(async move {
            links.add_route(to.address(), to.length(), Some(via), wiring::ETH0).await
        })
    }

    /// Stops all pods' namespaces and the node's own.
    pub(crate) fn shut_down(&self) {
        let pods = std::mem::take(&mut lock(&self.0.state).pods);
        for pod in pods.values() {
            pod.namespace().remove();
        }
        self.0.namespace.remove();
    }

    /// Leaves the node and its pods standing.
    pub(crate) fn keep(&self) {
        self.0.namespace.keep();
        for pod in self.pods() {
            pod.namespace().keep();
        }
    }
}

impl AsRef<Namespace> for Node {
    fn as_ref(&self) -> &Namespace {
        &self.0.namespace
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("name", &self.name()).field("addresses", &self.addresses()).finish()
    }
}
