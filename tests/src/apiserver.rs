//! A small API server that speaks the real Kubernetes list and watch protocol.
//!
//! ```no_run
//! use lb_tests::apiserver::{ApiServer, Options};
//!
//! # fn example() -> anyhow::Result<()> {
//! let server = ApiServer::start(std::net::TcpListener::bind("127.0.0.1:0")?, Options::default())?;
//! server.api().apply_yaml("{apiVersion: v1, kind: Namespace, metadata: {name: snackbar}}")?;
//! std::fs::write("kubeconfig", server.kubeconfig(&server.url()))?;
//! server.break_watches();
//! # Ok(())
//! # }
//! ```
//!
//! It keeps objects in memory with one counter of resource versions, and serves them over HTTP/1.1 with TLS and a bearer
//! token: `get`, `list` (selectors, pages, resource versions), `watch` (bookmarks, streaming lists, 410 Gone), `create`,
//! `update` (409), `patch` (merge, strategic, JSON, apply), `delete` (graceful for pods), the subresources `status` and
//! `scale`. Services get their ClusterIPs and node ports from it. [`ApiHandle`] does the same without HTTP. It can
//! misbehave on demand: see the methods of [`ApiServer`].

mod control;
mod defaults;
mod discovery;
mod front;
mod handle;
mod http;
mod list;
mod local;
mod patch;
mod plane;
mod random;
mod real;
mod registry;
mod remote;
mod resources;
mod selector;
mod serve;
mod services;
mod status;
mod store;
mod tls;
mod watch;

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    ops::RangeInclusive,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::sync::oneshot;

pub use handle::{ApiHandle, Changes};
pub use plane::ControlPlane;
pub use registry::DeleteOptions;
pub use resources::{RESOURCES, ResourceType};
pub use selector::Selector;
pub use status::ApiError;
pub use store::{Change, ChangeKind};

use control::Control;
use http::Service;
use local::Local;
pub(crate) use random::Random;
use registry::Registry;
pub(crate) use registry::rfc3339;
use serve::serve;
use services::{Allocator, Range};
pub(crate) use store::text;

/// How an [`ApiServer`] is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// The bearer token that is accepted.
    pub token: String,
    /// HTTPS (with an authority of its own) or plain HTTP.
    pub tls: bool,
    /// More names and addresses the certificate is for, besides the listener's address and loopback.
    pub names: Vec<String>,
    /// Ranges ClusterIPs are taken from, the primary family first.
    pub service_cidrs: Vec<String>,
    /// Ports node ports are taken from.
    pub node_ports: RangeInclusive<u16>,
    /// How many changes are remembered; watches from before get 410 Gone.
    pub history: usize,
    /// Time between bookmarks of a watch.
    pub bookmark_interval: Duration,
    /// Whether `sendInitialEvents` is understood; older servers refuse it with 422.
    pub streaming_lists: bool,
    /// Where the Service `default/kubernetes` leads to: makes its EndpointSlice.
    pub advertise: Option<SocketAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: "lab-token".to_owned(),
            tls: true,
            names: Vec::new(),
            service_cidrs: vec!["10.96.0.0/12".to_owned(), "fd00:96::/112".to_owned()],
            node_ports: 30_000..=32_767,
            history: 100_000,
            bookmark_interval: Duration::from_secs(60),
            streaming_lists: true,
            advertise: None,
        }
    }
}

/// A running API server, on a thread of its own; dropping it stops it.
#[derive(Debug)]
pub struct ApiServer {
    objects: Local,
    api: ApiHandle,
    control: Arc<Control>,
    address: SocketAddr,
    token: String,
    ca_pem: Option<String>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl ApiServer {
    /// Serves on a listener, which may sit in any network namespace.
    ///
    /// # Errors
    /// The listener has no address, a service range is none, or no certificate could be made.
    pub fn start(listener: TcpListener, options: Options) -> anyhow::Result<Self> {
        Self::start_with_door(listener, None, options)
    }

    /// As [`ApiServer::start`], with a second listener, of plain HTTP, where the server never misbehaves: whoever makes it
    /// misbehave has to get at the objects all the same.
    pub(crate) fn start_with_door(
        listener: TcpListener,
        door: Option<TcpListener>,
        options: Options,
    ) -> anyhow::Result<Self> {
        let address = listener.local_addr().context("address of the listener")?;
        listener.set_nonblocking(true).context("listener")?;
        let ranges = options
            .service_cidrs
            .iter()
            .map(|range| Range::parse(range).with_context(|| format!("service range {range:?}")))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let registry = Registry::new(options.history, Allocator::new(ranges, options.node_ports.clone()));
        let service_address = registry.first_service_address();
        let objects = Local::new(registry);
        let api = ApiHandle::local(objects.clone());
        populate(&api, service_address.as_deref(), options.advertise, address.port())
            .context("initial objects")?;
        let (ca_pem, acceptor) = if options.tls {
            let (names, addresses) = certificate_names(&options, address, service_address.as_deref());
            let tls = tls::make(&names, &addresses)?;
            (Some(tls.ca_pem), Some(tls.acceptor))
        } else {
            (None, None)
        };
        let well_behaved = || {
            Arc::new(Control::new(options.token.clone(), options.streaming_lists, options.bookmark_interval))
        };
        let control = well_behaved();
        let service = Arc::new(Service { api: objects.clone(), control: Arc::clone(&control) });
        let door = door.map(|door| -> anyhow::Result<_> {
            door.set_nonblocking(true).context("the other listener")?;
            Ok((door, Arc::new(Service { api: objects.clone(), control: well_behaved() })))
        });
        let door = door.transpose()?;
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("runtime of the API server")?;
        let thread = thread::Builder::new()
            .name("apiserver".to_owned())
            .spawn(move || {
                // Never told: it goes with the runtime.
                let (_stop, open) = oneshot::channel();
                if let Some((door, service)) = door {
                    runtime.spawn(serve(door, None, service, open));
                }
                runtime.block_on(serve(listener, acceptor, service, stopped));
                runtime.shutdown_background();
            })
            .context("thread of the API server")?;
        Ok(Self {
            objects,
            api,
            control,
            address,
            token: options.token,
            ca_pem,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// A handle into the server itself, without HTTP.
    pub fn api(&self) -> &ApiHandle {
        &self.api
    }

    /// Address and port it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the listener's address. A listener on the unspecified address is reached by another one.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.ca_pem.is_some() { "https" } else { "http" }, self.address)
    }

    /// The bearer token given at the start.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The certificate of the authority (PEM), when it serves HTTPS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// A kubeconfig (YAML) for clients that reach the server at this URL.
    pub fn kubeconfig(&self, server_url: &str) -> String {
        kubeconfig(server_url, self.ca_pem.as_deref(), &self.token)
    }

    /// Forgets all history: watches and lists from earlier resource versions get 410 Gone. Running watches go on.
    pub fn compact(&self) {
        self.objects.lock().store.compact();
    }

    /// The oldest resource version a watch may start from.
    pub fn oldest_version(&self) -> u64 {
        self.objects.lock().store.compacted()
    }

    /// Breaks every running watch in the middle of an event: half a line, then the connection is closed.
    pub fn break_watches(&self) {
        self.control.break_watches();
    }

    /// The server is away: open connections are cut, new ones reset as soon as they are made.
    pub fn pause(&self) {
        self.control.pause();
    }

    /// The server is back, at the same address.
    pub fn resume(&self) {
        self.control.resume();
    }

    /// The next `count` requests fail with this HTTP status.
    pub fn fail_next(&self, count: u32, status: u16) {
        self.control.settings().failing = (count, status);
    }

    /// Every answer is held back that long; zero ends it.
    pub fn slow_down(&self, delay: Duration) {
        self.control.settings().delay = delay;
    }

    /// Which token is accepted from now on; `None`: no token is (401), as if it had expired.
    pub fn accept_token(&self, token: Option<&str>) {
        self.control.settings().token = token.map(str::to_owned);
    }

    /// The token may not touch these types (plural names) any more: 403. An empty list ends it.
    pub fn forbid(&self, plurals: &[&str]) {
        self.control.settings().forbidden = plurals.iter().map(|&it| it.to_owned()).collect();
    }

    /// Time between bookmarks, of running watches too.
    pub fn set_bookmark_interval(&self, interval: Duration) {
        self.control.bookmarks.send_replace(interval);
    }

    /// Whether `sendInitialEvents` is understood; older servers refuse it with 422.
    pub fn set_streaming_lists(&self, understood: bool) {
        self.control.set_streaming_lists(understood);
    }

    /// The latest requests, oldest first: `GET /api/v1/services?watch=1`.
    pub fn requests(&self) -> Vec<String> {
        self.control.settings().log.iter().cloned().collect()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // A server that has ended already needs no telling.
            let _told = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the API server's thread panicked");
        }
    }
}

/// A kubeconfig (YAML) with a server, the certificate of its authority (PEM) and a token.
fn kubeconfig(server_url: &str, ca_pem: Option<&str>, token: &str) -> String {
    let authority = ca_pem.map_or_else(String::new, |pem| {
        format!("    certificate-authority-data: {}\n", list::base64(pem.as_bytes().to_vec()))
    });
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: lab\n  cluster:\n    server: {server_url}\n{authority}\
         users:\n- name: lab\n  user:\n    token: {token}\ncontexts:\n- name: lab\n  context:\n    cluster: lab\n    \
         user: lab\ncurrent-context: lab\n",
    )
}

/// The objects a cluster has from the beginning.
fn populate(
    api: &ApiHandle,
    service_address: Option<&str>,
    advertise: Option<SocketAddr>,
    port: u16,
) -> anyhow::Result<()> {
    for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
        api.create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))?;
    }
    let Some(service_address) = service_address else { return Ok(()) };
    let target_port = advertise.map_or(port, |it| it.port());
    let service = api.create(&json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "clusterIP": service_address,
            "ports": [{"name": "https", "port": 443, "targetPort": target_port}],
        },
    }))?;
    if let Some(advertise) = advertise {
        let family = if advertise.is_ipv4() { "IPv4" } else { "IPv6" };
        api.create(&json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": family,
            "endpoints": [{"addresses": [advertise.ip().to_string()], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "protocol": "TCP", "port": target_port}],
        }))?;
    }
    drop::<Value>(service);
    Ok(())
}

fn certificate_names(
    options: &Options,
    address: SocketAddr,
    service_address: Option<&str>,
) -> (Vec<String>, Vec<IpAddr>) {
    let mut names: Vec<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut addresses =
        vec![address.ip(), IpAddr::from([127, 0, 0, 1]), std::net::Ipv6Addr::LOCALHOST.into()];
    addresses.extend(options.advertise.map(|it| it.ip()));
    addresses.extend(service_address.and_then(|it| it.parse::<IpAddr>().ok()));
    for name in &options.names {
        match name.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(name.clone()),
        }
    }
    addresses.sort();
    addresses.dedup();
    (names, addresses)
}
