//! One run of one title: its Kubernetes namespace, its pods and Services, its clients, and what it waits for.

#[path = "case/looks.rs"]
mod looks;
#[path = "case/pods.rs"]
mod pods;

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError, atomic::AtomicU16},
    time::Duration,
};

use anyhow::{Context, Result};
use lb_tests::{
    apiserver::{ApiHandle, DeleteOptions},
    cluster::Cluster,
    lab::{Caller, Node},
};
use serde_json::{Value, json};

use crate::{
    fixture::{Fixture, IpFamily, Variant},
    record::Notes,
    service::Svc,
};

pub(crate) use looks::{LIMIT, any_of, ask, is, refused, silent};
pub(crate) use pods::{HostPod, PodClient, netexec};

/// How long a client waits for an answer, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(3);

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

    /// Notes how long a change took to be visible.
    pub(crate) fn note(&self, what: &str, elapsed: Duration) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push((what.to_owned(), elapsed));
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
