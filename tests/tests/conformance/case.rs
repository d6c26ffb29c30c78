//! One run of one title: its Kubernetes namespace, its pods and Services, its clients, and what it waits for.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    net::{IpAddr, SocketAddr},
    ops::Deref,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use lb_tests::{
    apiserver::{ApiHandle, DeleteOptions},
    cluster::Cluster,
    lab::{Caller, KubePod, Node},
    workload::NetError,
};
use serde_json::{Value, json};
use tokio::time::timeout_at;

use crate::{
    fixture::{Fixture, IpFamily, Variant},
    record::Notes,
    service::{Protocol, Svc},
};

/// Within this a change must be visible (some 10 ms are expected; upstream allows 30 s). A loaded machine shall not fail.
pub(crate) const LIMIT: Duration = Duration::from_secs(2);
/// How long a client waits for an answer, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long one look at something that changes may take: its first packet may have come too early, and be lost.
const LOOK: Duration = Duration::from_millis(400);
/// After this a look that has no answer yet is joined by another one: soon at first, then at leisure.
const ANOTHER_LOOK: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(25)];
/// Time between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// So many requests in a row say where they lead.
const IN_A_ROW: usize = 6;
/// After this a request that is to stay without answer has none.
const SILENCE: Duration = Duration::from_millis(300);
/// How long anything may take that the lab does, not the agents.
const LAB_LIMIT: Duration = Duration::from_secs(30);
/// Ports of host-network servers are taken from here on: below node ports and the ephemeral ones.
const FIRST_HOST_PORT: u16 = 20_000;

/// One run of one title. What it made is removed when it is dropped.
pub(crate) struct Case {
    fixture: Arc<Fixture>,
    family: IpFamily,
    namespace: String,
    notes: Notes,
    pods: AtomicU16,
}

impl Case {
    /// A case with a Kubernetes namespace of its own.
    pub(crate) fn new(fixture: Arc<Fixture>, family: IpFamily, notes: Notes) -> Result<Self> {
        let namespace = format!("e2e-{}", fixture.next_case());
        fixture.cluster.api().create(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace},
        }))?;
        Ok(Self { fixture, family, namespace, notes, pods: AtomicU16::new(0) })
    }

    /// The cluster.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.fixture.cluster
    }

    /// The cluster, for a title that runs alone and kills agents.
    pub(crate) fn own_cluster(&mut self) -> Result<&mut Cluster> {
        let fixture = Arc::get_mut(&mut self.fixture).context("only a title that runs alone may do that")?;
        Ok(&mut fixture.cluster)
    }

    /// The objects.
    pub(crate) fn api(&self) -> &ApiHandle {
        self.cluster().api()
    }

    /// The Kubernetes namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The family it runs with.
    pub(crate) fn family(&self) -> IpFamily {
        self.family
    }

    /// Shape and mode.
    pub(crate) fn variant(&self) -> Variant {
        self.fixture.variant
    }

    /// A node, by position from 0.
    pub(crate) fn node(&self, node: usize) -> &Node {
        self.cluster().node(node)
    }

    /// All nodes.
    pub(crate) fn nodes(&self) -> &[Node] {
        self.cluster().lab().nodes()
    }

    /// A node's own address, of the family.
    pub(crate) fn node_ip(&self, node: usize) -> Result<IpAddr> {
        self.family.pick(self.node(node).addresses())
    }

    /// An address of the family that no node has and no other title uses; hosts outside route it to this node.
    pub(crate) fn routed_address(&self, node: usize) -> IpAddr {
        self.fixture.routed_address(node, self.family)
    }

    /// A process of a node: its network namespace, its cgroup.
    pub(crate) fn host(&self, node: usize) -> Caller {
        self.fixture.host(node).within(PATIENCE)
    }

    /// A host outside the cluster: 0 or 1.
    pub(crate) fn outside(&self, number: usize) -> Caller {
        self.fixture.outside(number).within(PATIENCE)
    }

    /// The address of a host outside, of the family.
    pub(crate) fn outside_ip(&self, number: usize) -> Result<IpAddr> {
        self.family.pick(self.cluster().lab().client(number).addresses())
    }

    /// A Service named `name`; see [`Svc::create`].
    pub(crate) fn service(&self, name: &str, spec: Value) -> Result<Svc> {
        Svc::create(self.api(), &self.namespace, name, self.family, &spec)
    }

    /// A netexec pod (8080 TCP, 8081 UDP) that no Service selects.
    pub(crate) async fn pod(&self, name: &str, node: usize) -> Result<PodClient> {
        self.pod_with(name, node, json!({"pod": name}), json!({})).await
    }

    /// A netexec pod behind the Service `app` (label `app`), with a name of its own.
    pub(crate) async fn backend(&self, app: &str, node: usize) -> Result<PodClient> {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        self.pod_with(&format!("{app}-{number}"), node, json!({"app": app}), json!({})).await
    }

    /// As [`Case::backend`]; it goes on serving for minutes when it is told to terminate ([`Case::terminate`]).
    pub(crate) async fn lingering_backend(&self, app: &str, node: usize) -> Result<PodClient> {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let args = ["--http-port=8080", "--udp-port=8081", "--delay-shutdown=600"];
        let spec = json!({"containers": [netexec(&args)]});
        self.pod_with(&format!("{app}-{number}"), node, json!({"app": app}), spec).await
    }

    /// Lets a pod terminate: it is deleted, but has ten minutes to finish.
    pub(crate) fn terminate(&self, pod: &PodClient) -> Result<()> {
        self.delete_pod(pod.name(), Duration::from_secs(600))
    }

    /// A netexec pod, with more in its spec (JSON merge patch; a list `containers` replaces netexec). Returns when it is
    /// ready, and its node's agent has attached to its device.
    pub(crate) async fn pod_with(
        &self,
        name: &str,
        node: usize,
        labels: Value,
        spec: Value,
    ) -> Result<PodClient> {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace, "labels": labels},
            "spec": {
                "nodeName": self.node(node).name(),
                "containers": [netexec(&["--http-port=8080", "--udp-port=8081"])],
            },
        });
        for (key, value) in spec.as_object().into_iter().flatten() {
            pod["spec"][key] = value.clone();
        }
        self.api().create(&pod).with_context(|| format!("creating pod {name}"))?;
        let cluster = self.cluster();
        cluster
            .eventually(&format!("pod {name} is ready and attached"), || {
                let running = cluster.runtime().pod(&self.namespace, name);
                let object = self.api().value("pods", &self.namespace, name)?;
                let ready = condition(&object, "Ready").is_some_and(|it| it["status"] == "True");
                Ok(ready && running.is_some_and(|pod| cluster.is_attached(&pod)))
            })
            .await?;
        let pod = cluster.runtime().pod(&self.namespace, name).context("the pod went away at once")?;
        PodClient::new(pod, self.family)
    }

    /// A netexec server in a node's own network (a hostNetwork pod), on ports of its own; see [`HostPod`].
    pub(crate) async fn host_pod(&self, name: &str, node: usize, labels: Value) -> Result<HostPod> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let http = FIRST_HOST_PORT + 2 * (NEXT.fetch_add(1, Ordering::Relaxed) % 4_000);
        // A UDP server on all of a node's addresses would answer from whichever is nearest to the client: such pods are told
        // the node's own, as upstream's are.
        let own: Vec<String> = self.node(node).addresses().iter().map(ToString::to_string).collect();
        let ports = [
            format!("--http-port={http}"),
            format!("--udp-port={}", http + 1),
            format!("--udp-listen-addresses={}", own.join(",")),
        ];
        let spec = json!({
            "hostNetwork": true, "containers": [netexec(&ports.each_ref().map(String::as_str))],
        });
        let pod = self.pod_with(name, node, labels, spec).await?;
        Ok(HostPod { pod: pod.pod, http, udp: http + 1 })
    }

    /// Deletes a pod, which gets this long to finish (see `--delay-shutdown` of netexec).
    pub(crate) fn delete_pod(&self, name: &str, grace: Duration) -> Result<()> {
        let options =
            DeleteOptions { grace_seconds: i64::try_from(grace.as_secs()).ok(), ..DeleteOptions::default() };
        Ok(self.api().delete_value("pods", &self.namespace, name, &options)?)
    }

    /// Says whether a pod is ready, as its kubelet would after a probe.
    pub(crate) fn set_ready(&self, pod: &str, ready: bool) -> Result<()> {
        let object = self.api().value("pods", &self.namespace, pod)?;
        let mut conditions = object["status"]["conditions"].clone();
        for condition in conditions.as_array_mut().into_iter().flatten() {
            if condition["type"] == "Ready" || condition["type"] == "ContainersReady" {
                condition["status"] = if ready { "True" } else { "False" }.into();
            }
        }
        let status = json!({"status": {"conditions": conditions}});
        self.api().patch_status_value("pods", &self.namespace, pod, &status)?;
        Ok(())
    }

    /// Writes an EndpointSlice of the family by hand, for a Service without selector: `ports` and `endpoints` as in the
    /// object (`[{"name": "http", "port": 8080, "protocol": "TCP"}]`, `[{"addresses": ["10.244.1.2"], "conditions": {…}}]`).
    pub(crate) fn slice(&self, name: &str, service: &str, ports: Value, endpoints: Value) -> Result<()> {
        self.api().apply(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": self.namespace, "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": self.family.to_string(), "ports": ports, "endpoints": endpoints,
        }))?;
        Ok(())
    }

    /// Asks until the answer is the wanted one, notes how long that took, and returns it. A look that has no answer after
    /// 5 ms is joined by another one, and given up after 400 ms, as [`NetError::Timeout`]: the first packet of a look may come
    /// too early, and be lost.
    ///
    /// # Errors
    /// It is not within [`LIMIT`]; says what the last answer was.
    pub(crate) async fn visible<T: Debug>(
        &self,
        what: &str,
        ask: impl AsyncFn() -> Result<T, NetError>,
        wanted: impl Fn(&Result<T, NetError>) -> bool,
    ) -> Result<Duration> {
        let elapsed = watch(ask, wanted).await.with_context(|| what.to_owned())?;
        self.note(what, elapsed);
        Ok(elapsed)
    }

    /// Notes how long a change took to be visible.
    pub(crate) fn note(&self, what: &str, elapsed: Duration) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push((what.to_owned(), elapsed));
    }

    /// Asks so many times, one after another; every answer must be the wanted one.
    ///
    /// # Errors
    /// One is not.
    pub(crate) async fn stays<T: Debug>(
        &self,
        what: &str,
        times: u32,
        mut ask: impl AsyncFnMut() -> Result<T, NetError>,
        wanted: impl Fn(&Result<T, NetError>) -> bool,
    ) -> Result<()> {
        for time in 1..=times {
            let answer = ask().await;
            ensure!(wanted(&answer), "{what}: request {time} of {times} saw {answer:?}");
        }
        Ok(())
    }

    /// Asks so many times at once; soon nobody answers any of them, in whatever way, within 300 ms: no refusal either. (The
    /// node that is asked may learn of an endpoint a moment later than the one that was waited for.)
    ///
    /// # Errors
    /// Somebody still does after [`LIMIT`].
    pub(crate) async fn silent<T: Debug>(
        &self,
        what: &str,
        times: u32,
        ask: impl AsyncFn() -> Result<T, NetError>,
    ) -> Result<()> {
        let begin = Instant::now();
        loop {
            let asked = begin.elapsed();
            let looks = (0..times).map(|_| tokio::time::timeout(SILENCE, ask()));
            let seen = join_all(looks).await.into_iter().filter_map(Result::ok);
            let Some(answer) = seen.into_iter().find(|answer| !silent(answer)) else {
                self.note(what, asked);
                return Ok(());
            };
            ensure!(begin.elapsed() < LIMIT, "{what}: expected silence, saw {answer:?}");
        }
    }

    /// A connection (or a datagram on a connected socket) to `to` is refused within upstream's three seconds, and that is
    /// visible within [`LIMIT`]. (Linux heeds the refusal of an IPv6 connection with its second SYN only, a second later: that
    /// time is not noted.)
    ///
    /// # Errors
    /// It is not.
    pub(crate) async fn refuses(&self, caller: &Caller, to: SocketAddr, protocol: Protocol) -> Result<()> {
        let what = format!("{} is refused at {to}/{}", caller.name(), protocol.name());
        if to.is_ipv4() || protocol == Protocol::Udp {
            self.visible(&what, async || ask(caller, to, protocol).await, refused).await?;
            return Ok(());
        }
        let begin = Instant::now();
        loop {
            let answer = caller.within(PATIENCE).connect(to).await;
            if refused(&answer) {
                return Ok(());
            }
            ensure!(begin.elapsed() < 2 * LIMIT, "{what}: saw {answer:?}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Nobody answers at `to` any more, soon and from then on: new connections are refused or get no answer.
    ///
    /// # Errors
    /// Somebody answers.
    pub(crate) async fn unreachable(
        &self,
        caller: &Caller,
        to: SocketAddr,
        protocol: Protocol,
    ) -> Result<()> {
        let what = format!("nobody answers {} at {to}/{}", caller.name(), protocol.name());
        let begin = Instant::now();
        loop {
            let asked = begin.elapsed();
            let looks =
                (0..5).map(|_| ask(caller, to, protocol)).map(|look| tokio::time::timeout(SILENCE, look));
            let answer = join_all(looks).await.into_iter().find_map(|look| look.ok()?.ok());
            let Some(name) = answer else {
                self.note(&what, asked);
                return Ok(());
            };
            ensure!(begin.elapsed() < LIMIT, "{what}: {name} did");
        }
    }

    /// New connections (or sockets) to `to` reach all of these servers, and no other: six requests at least, as upstream
    /// counts them, so that of two servers one that is not wanted is met all but surely.
    ///
    /// # Errors
    /// A request fails, another server answers, or one of them is not met in 40 requests for each.
    pub(crate) async fn reaches(
        &self,
        caller: &Caller,
        to: SocketAddr,
        protocol: Protocol,
        servers: &[&str],
    ) -> Result<()> {
        let wanted: BTreeSet<&str> = servers.iter().copied().collect();
        let mut met = BTreeSet::new();
        for asked in 1..=40 * wanted.len().max(1) {
            let answer = ask(caller, to, protocol).await;
            let name = answer.with_context(|| {
                format!("{} at {to}/{}, wanted {wanted:?}", caller.name(), protocol.name())
            })?;
            let known = wanted.get(name.as_str());
            met.insert(*known.with_context(|| format!("{name} answered at {to}, not one of {wanted:?}"))?);
            if met == wanted && asked >= IN_A_ROW {
                return Ok(());
            }
        }
        bail!("{} at {to}/{} met only {met:?} of {wanted:?}", caller.name(), protocol.name())
    }

    /// As [`Case::visible`] and [`Case::reaches`]: new connections reach exactly these servers soon, and then stay so.
    ///
    /// # Errors
    /// As those.
    pub(crate) async fn comes_to_reach(
        &self,
        caller: &Caller,
        to: SocketAddr,
        protocol: Protocol,
        servers: &[&str],
    ) -> Result<()> {
        let what = format!("{} reaches {servers:?} at {to}/{}", caller.name(), protocol.name());
        let begin = Instant::now();
        loop {
            // Some of them answer, then all of them do.
            let left = begin.elapsed();
            let first = watch(async || ask(caller, to, protocol).await, any_of(servers)).await;
            let first = left + first.with_context(|| what.clone())?;
            // What went to an endpoint that is gone, just before the change was visible, is not waited for.
            match self.reaches(&caller.within(SILENCE), to, protocol, servers).await {
                Ok(()) => {
                    // It held from the first of these requests on.
                    self.note(&what, first);
                    return Ok(());
                }
                Err(error) if begin.elapsed() > LIMIT => return Err(error.context(what)),
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Waits until something in the lab holds that agents have no part in.
    ///
    /// # Errors
    /// It does not.
    pub(crate) async fn eventually(
        &self,
        what: &str,
        mut holds: impl AsyncFnMut() -> Result<bool>,
    ) -> Result<()> {
        let begin = Instant::now();
        while !holds().await? {
            ensure!(begin.elapsed() < LAB_LIMIT, "waited in vain: {what}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let api = self.api();
        let now = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
        for plural in ["deployments", "services", "pods", "endpointslices"] {
            for object in api.values(plural, Some(&self.namespace)).unwrap_or_default() {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                // A controller may have been quicker.
                let _gone = api.delete_value(plural, &self.namespace, name, &now);
            }
        }
        let _gone = api.delete_value("namespaces", "", &self.namespace, &now);
    }
}

/// Looks until the answer is the wanted one; the time of the look that saw it.
async fn watch<T: Debug>(
    ask: impl AsyncFn() -> Result<T, NetError>,
    wanted: impl Fn(&Result<T, NetError>) -> bool,
) -> Result<Duration> {
    let begin = Instant::now();
    let look = || async {
        let started = begin.elapsed();
        match tokio::time::timeout(LOOK, ask()).await {
            Ok(answer) => (answer, begin.elapsed()),
            // Silence began with the first packet.
            Err(_) => (Err(NetError::Timeout), started),
        }
    };
    let (mut looks, mut last) = (FuturesUnordered::new(), None);
    let mut count = 0_u32;
    while begin.elapsed() < LIMIT {
        looks.push(look());
        count += 1;
        let another = Instant::now() + ANOTHER_LOOK[usize::from(count > 20)];
        while let Ok(Some((answer, elapsed))) = timeout_at(another.into(), looks.next()).await {
            if wanted(&answer) {
                return Ok(elapsed);
            }
            last = Some(answer);
            if looks.is_empty() {
                tokio::time::sleep(LOOK_AGAIN).await;
                break;
            }
        }
    }
    bail!("not visible after {count} looks in {:.1?}; the last saw {last:?}", begin.elapsed())
}

/// The name of the netexec server that answers.
pub(crate) async fn ask(caller: &Caller, to: SocketAddr, protocol: Protocol) -> Result<String, NetError> {
    match protocol {
        Protocol::Tcp => caller.hostname(to).await,
        Protocol::Udp => caller.udp_hostname(to).await,
    }
}

/// A container of netexec with these arguments.
pub(crate) fn netexec(ports: &[&str]) -> Value {
    let args: Vec<&str> = ["netexec"].iter().chain(ports).copied().collect();
    json!({"name": "netexec", "image": "registry.k8s.io/e2e-test-images/agnhost:2.53", "args": args})
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod.pointer("/status/conditions")?.as_array()?.iter().find(|it| it["type"] == kind)
}

/// A pod and a client in it.
#[derive(Clone)]
pub(crate) struct PodClient {
    pub(crate) pod: KubePod,
    caller: Caller,
    ip: IpAddr,
}

impl PodClient {
    fn new(pod: KubePod, family: IpFamily) -> Result<Self> {
        let caller = Caller::at(format!("pod {}", pod.name()), &pod).within(PATIENCE);
        let ip = family.pick(pod.addresses())?;
        Ok(Self { pod, caller, ip })
    }

    /// The pod's name, which its netexec server tells.
    pub(crate) fn name(&self) -> &str {
        self.pod.name()
    }

    /// The client in it.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Its address of the family.
    pub(crate) fn ip(&self) -> IpAddr {
        self.ip
    }
}

impl Deref for PodClient {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

/// A server in a node's own network.
pub(crate) struct HostPod {
    pub(crate) pod: KubePod,
    /// Its TCP port.
    pub(crate) http: u16,
    /// Its UDP port.
    pub(crate) udp: u16,
}

impl HostPod {
    /// The pod's name, which its netexec server tells.
    pub(crate) fn name(&self) -> &str {
        self.pod.name()
    }
}

/// The answer is this text.
pub(crate) fn is(wanted: &str) -> impl Fn(&Result<String, NetError>) -> bool {
    move |answer| answer.as_deref() == Ok(wanted)
}

/// The answer is one of these texts.
pub(crate) fn any_of(wanted: &[&str]) -> impl Fn(&Result<String, NetError>) -> bool {
    move |answer| answer.as_deref().is_ok_and(|answer| wanted.contains(&answer))
}

/// The application saw ECONNREFUSED.
pub(crate) fn refused<T>(answer: &Result<T, NetError>) -> bool {
    matches!(answer, Err(NetError::Refused))
}

/// Nobody answered.
pub(crate) fn silent<T>(answer: &Result<T, NetError>) -> bool {
    matches!(answer, Err(NetError::Timeout))
}
