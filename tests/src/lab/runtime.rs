//! The kubelets of a lab: Kubernetes pods as lab pods with containers that are tasks of this process.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    process::Output,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{self, EnvVar, Pod as ApiPod, PodSpec as ApiPodSpec};

use super::{
    Lab, Node, Pod, PodSpec, ResolvConf,
    images::{self, Container, ContainerHandle, StartContainer},
    run::Run,
};
use crate::{
    netns::{Namespace, lock},
    runtime::{NodeInfo, PodRuntime, RuntimeFuture},
};

/// The annotation that asks for fixed addresses, as Calico reads it: a JSON list of strings.
const FIXED_ADDRESSES: &str = "cni.projectcalico.org/ipAddrs";

/// Starts Kubernetes pods in a lab. Knows `agnhost` (`netexec`, `pause`), `pause`, `busybox` (idle) and `mariadb` by
/// itself; [`LabRuntime::register`] teaches it more images.
pub struct LabRuntime {
    nodes: Vec<Node>,
    run: Arc<Run>,
    images: Mutex<Vec<(String, StartContainer)>>,
    pods: Mutex<BTreeMap<(String, String), KubePod>>,
}

/// A Kubernetes pod running in a lab; clones are handles to the same one.
///
/// It can be passed wherever a place in the network is wanted (`impl AsRef<Namespace>`).
#[derive(Clone)]
pub struct KubePod(Arc<Inner>);

struct Inner {
    object: ApiPod,
    node: Node,
    /// `None` for host-network pods.
    pod: Option<Pod>,
    env: BTreeMap<String, Vec<(String, String)>>,
    containers: Vec<Box<dyn ContainerHandle>>,
    /// Held while the pod is being stopped; then whether it was.
    stopped: tokio::sync::Mutex<bool>,
}

impl KubePod {
    /// The object it was started from.
    pub fn object(&self) -> &ApiPod {
        &self.0.object
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.0.object.metadata.name.as_deref().unwrap_or_default()
    }

    /// The node it runs on.
    pub fn node(&self) -> &Node {
        &self.0.node
    }

    /// Its network: a pod of the lab, or none for host-network pods.
    pub fn pod(&self) -> Option<&Pod> {
        self.0.pod.as_ref()
    }

    /// Its addresses, primary family first.
    pub fn addresses(&self) -> &[IpAddr] {
        self.pod().map_or_else(|| self.0.node.addresses(), Pod::addresses)
    }

    /// The environment of its first container.
    pub fn env(&self) -> &[(String, String)] {
        let first = self.0.object.spec.as_ref().and_then(|spec| spec.containers.first());
        first.and_then(|container| self.0.env.get(&container.name)).map_or(&[], Vec::as_slice)
    }

    /// One environment variable of its first container.
    pub fn env_var(&self, name: &str) -> Option<&str> {
        self.env().iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Runs a program in its first container's surroundings; see [`Pod::exec`].
    ///
    /// # Errors
    /// As [`Pod::exec`].
    pub async fn exec(&self, argv: &[&str], limit: Duration) -> anyhow::Result<Output> {
        match self.pod() {
            Some(pod) => pod.exec(argv, &[], limit).await,
            None => {
                let env: Vec<(&str, &str)> =
                    self.env().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
                self.0.node.exec(argv, &env, limit).await
            }
        }
    }
}

impl AsRef<Namespace> for KubePod {
    fn as_ref(&self) -> &Namespace {
        self.pod().map_or_else(|| self.0.node.namespace(), Pod::namespace)
    }
}

impl LabRuntime {
    /// The kubelets of this lab's nodes.
    pub fn new(lab: &Lab) -> Arc<Self> {
        Arc::new(Self {
            nodes: lab.nodes().to_vec(),
            run: Arc::clone(&lab.run),
            images: Mutex::new(images::built_in()),
            pods: Mutex::new(BTreeMap::new()),
        })
    }

    /// Teaches it an image, by repository (`registry.k8s.io/coredns/coredns`) or last part of it (`coredns`), whatever
    /// the tag. The newest registration wins.
    pub fn register(&self, repository: &str, start: StartContainer) {
        lock(&self.images).insert(0, (repository.to_owned(), start));
    }

    /// A running pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<KubePod> {
        lock(&self.pods).get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// All running pods, by namespace and name.
    pub fn pods(&self) -> Vec<KubePod> {
        lock(&self.pods).values().cloned().collect()
    }

    fn image(&self, reference: &str) -> anyhow::Result<StartContainer> {
        let images = lock(&self.images);
        let known = images.iter().find(|(name, _)| images::is_of(reference, name));
        let (_, start) = known.with_context(|| format!("the lab does not know image {reference}"))?;
        Ok(Arc::clone(start))
    }

    async fn start(
        &self,
        object: ApiPod,
        node: &str,
        service_env: Vec<(String, String)>,
    ) -> anyhow::Result<Vec<IpAddr>> {
        let name = object.metadata.name.clone().context("a pod without name")?;
        let namespace = object.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let key = (namespace.clone(), name.clone());
        anyhow::ensure!(!lock(&self.pods).contains_key(&key), "pod {namespace}/{name} runs already");
        let node = self
            .nodes
            .iter()
            .find(|known| known.name() == node)
            .with_context(|| format!("no node {node}"))?
            .clone();
        let spec = object.spec.clone().with_context(|| format!("pod {namespace}/{name} has no spec"))?;
        let images = spec
            .containers
            .iter()
            .map(|container| self.image(container.image.as_deref().unwrap_or_default()));
        let images = images.collect::<anyhow::Result<Vec<_>>>()?;
        let pod = if spec.host_network == Some(true) {
            None
        } else {
            let mut wanted = PodSpec::new(&name).namespace(&namespace).addresses(fixed_addresses(&object)?);
            if let Some(dns) = own_dns(&spec)? {
                wanted = wanted.dns(dns);
            }
            let on = node.clone();
            Some(tokio::task::spawn_blocking(move || on.add_pod(wanted)).await??)
        };
        let addresses = pod.as_ref().map_or_else(|| node.addresses(), Pod::addresses).to_vec();
        let place = pod.as_ref().map_or_else(|| node.namespace(), Pod::namespace).clone();
        let facts = Facts { object: &object, node: &node, addresses: &addresses };
        let started = async {
            let (mut handles, mut all_env) = (Vec::new(), BTreeMap::new());
            for (container, start) in spec.containers.iter().zip(images) {
                let env = facts.environment(&service_env, container)?;
                let container = Container {
                    namespace: place.clone(),
                    hostname: spec.hostname.clone().unwrap_or_else(|| name.clone()),
                    addresses: addresses.clone(),
                    name: container.name.clone(),
                    image: container.image.clone().unwrap_or_default(),
                    argv: argv(container, &env),
                    env: env.clone(),
                    pre_stop: pre_stop(container),
                    run: Arc::clone(&self.run),
                };
                let what = container.name.clone();
                handles.push(start(container).await.with_context(|| format!("container {what}"))?);
                all_env.insert(what, env);
            }
            anyhow::Ok((handles, all_env))
        };
        let (handles, env) = match started.await {
            Ok(started) => started,
            Err(error) => {
                if let Some(pod) = &pod {
                    pod.remove()?;
                }
                return Err(error.context(format!("starting pod {namespace}/{name}")));
            }
        };
        let running = KubePod(Arc::new(Inner {
            object,
            node,
            pod,
            env,
            containers: handles,
            stopped: Default::default(),
        }));
        if let Some(pod) = running.pod() {
            pod.set_env(running.env().to_vec());
        }
        lock(&self.pods).insert(key, running);
        Ok(addresses)
    }
}

impl PodRuntime for LabRuntime {
    fn start_pod<'a>(
        &'a self,
        pod: ApiPod,
        node: &'a str,
        service_env: Vec<(String, String)>,
    ) -> RuntimeFuture<'a, Vec<IpAddr>> {
        Box::pin(self.start(pod, node, service_env))
    }

    fn wait_ready<'a>(&'a self, namespace: &'a str, name: &'a str) -> RuntimeFuture<'a, ()> {
        Box::pin(async move {
            let pod = self.pod(namespace, name).with_context(|| format!("no pod {namespace}/{name}"))?;
            try_join_all(pod.0.containers.iter().map(|container| container.wait_ready())).await?;
            Ok(())
        })
    }

    fn stop_pod<'a>(&'a self, namespace: &'a str, name: &'a str, grace: Duration) -> RuntimeFuture<'a, ()> {
        Box::pin(async move {
            let Some(pod) = self.pod(namespace, name) else { return Ok(()) };
            let mut stopped = pod.0.stopped.lock().await;
            if *stopped {
                return Ok(());
            }
            let outcome = try_join_all(pod.0.containers.iter().map(|container| container.stop(grace))).await;
            if let Some(lab_pod) = pod.pod().cloned() {
                tokio::task::spawn_blocking(move || lab_pod.remove()).await??;
            }
            // No other pod of this name can have been started meanwhile: this one was still listed.
            lock(&self.pods).remove(&(namespace.to_owned(), name.to_owned()));
            *stopped = true;
            outcome.map(|_| ())
        })
    }

    fn nodes(&self) -> Vec<NodeInfo> {
        let info = |node: &Node| NodeInfo {
            name: node.name().to_owned(),
            addresses: node.addresses().to_vec(),
            pod_cidrs: node.pod_cidrs().iter().map(ToString::to_string).collect(),
            zone: node.zone().map(str::to_owned),
        };
        self.nodes.iter().map(info).collect()
    }
}

/// What the environment of a container can refer to.
struct Facts<'a> {
    object: &'a ApiPod,
    node: &'a Node,
    addresses: &'a [IpAddr],
}

impl Facts<'_> {
    /// Service variables, then the container's own, which win and may refer to everything before them.
    fn environment(
        &self,
        service_env: &[(String, String)],
        container: &v1::Container,
    ) -> anyhow::Result<Vec<(String, String)>> {
        let mut env = service_env.to_vec();
        for variable in container.env.iter().flatten() {
            let value = match &variable.value_from {
                Some(_) => self.value_from(variable)?,
                None => expand(variable.value.as_deref().unwrap_or_default(), &env),
            };
            env.retain(|(key, _)| *key != variable.name);
            env.push((variable.name.clone(), value));
        }
        Ok(env)
    }

    fn value_from(&self, variable: &EnvVar) -> anyhow::Result<String> {
        let path = variable
            .value_from
            .as_ref()
            .and_then(|source| source.field_ref.as_ref())
            .map(|field| field.field_path.as_str())
            .with_context(|| format!("variable {}: the lab only knows fieldRef", variable.name))?;
        let joined =
            |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let metadata = &self.object.metadata;
        Ok(match path {
            "metadata.name" => metadata.name.clone().unwrap_or_default(),
            "metadata.namespace" => metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
            "spec.nodeName" => self.node.name().to_owned(),
            "status.hostIP" => self.node.address().to_string(),
            "status.hostIPs" => joined(self.node.addresses()),
            "status.podIP" => joined(&self.addresses[..1]),
            "status.podIPs" => joined(self.addresses),
            other => anyhow::bail!("variable {}: unknown field {other}", variable.name),
        })
    }
}

/// Replaces `$(NAME)` by the variable's value; `$$` is a dollar, unknown names stay as they are.
fn expand(text: &str, env: &[(String, String)]) -> String {
    let values: HashMap<&str, &str> = env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let (mut result, mut rest) = (String::new(), text);
    while let Some(position) = rest.find('$') {
        result.push_str(&rest[..position]);
        rest = &rest[position + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            match values.get(name) {
                Some(value) => result.push_str(value),
                None => result.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    result
}

fn argv(container: &v1::Container, env: &[(String, String)]) -> Vec<String> {
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    words.map(|word| expand(word, env)).collect()
}

/// How long `lifecycle.preStop` sleeps (`sleep.seconds`, or `exec` of `sleep`).
fn pre_stop(container: &v1::Container) -> Duration {
    let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    let seconds = hook.and_then(|hook| match (&hook.sleep, &hook.exec) {
        (Some(sleep), _) => u64::try_from(sleep.seconds).ok(),
        (None, Some(exec)) => match exec.command.as_deref().unwrap_or_default() {
            [program, seconds] if program == "sleep" => seconds.parse().ok(),
            _ => None,
        },
        (None, None) => None,
    });
    Duration::from_secs(seconds.unwrap_or_default())
}

/// DNS settings of a pod with `dnsPolicy: None`.
fn own_dns(spec: &ApiPodSpec) -> anyhow::Result<Option<ResolvConf>> {
    let Some(config) = spec.dns_config.as_ref().filter(|_| spec.dns_policy.as_deref() == Some("None")) else {
        return Ok(None);
    };
    let servers = config.nameservers.iter().flatten().map(|server| server.parse());
    let ndots = config.options.iter().flatten().find(|option| option.name.as_deref() == Some("ndots"));
    Ok(Some(ResolvConf {
        nameservers: servers.collect::<Result<_, _>>().context("dnsConfig.nameservers")?,
        searches: config.searches.clone().unwrap_or_default(),
        ndots: ndots.and_then(|option| option.value.as_deref()).map_or(Ok(1), str::parse)?,
    }))
}

fn fixed_addresses(object: &ApiPod) -> anyhow::Result<Vec<IpAddr>> {
    match object.metadata.annotations.as_ref().and_then(|annotations| annotations.get(FIXED_ADDRESSES)) {
        Some(list) => {
            serde_json::from_str(list).with_context(|| format!("annotation {FIXED_ADDRESSES}={list}"))
        }
        None => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn variables_expand_as_kubernetes_does_it() {
        let env = vec![("A".to_owned(), "1".to_owned()), ("B_C".to_owned(), "$(A)".to_owned())];
        for (text, wanted) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B_C)", "$(A)"),
            ("$(NONE)", "$(NONE)"),
            ("$$(A)", "$(A)"),
            ("cost: 5$", "cost: 5$"),
            ("$(A", "$(A"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &env), wanted, "{text}");
        }
    }
}
