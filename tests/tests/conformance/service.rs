//! A Service of a title: made, changed, and asked for its addresses.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use lb_tests::apiserver::ApiHandle;
use serde_json::{Value, json};

use crate::fixture::IpFamily;

/// What a netexec server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP, on a connection of its own for each request.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// Both.
    pub(crate) const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];

    /// As Kubernetes writes it.
    pub(crate) fn name(self) -> &'static str {
        if self == Self::Tcp { "TCP" } else { "UDP" }
    }
}

/// A Service; clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Svc {
    api: ApiHandle,
    namespace: String,
    name: String,
    family: IpFamily,
}

impl Svc {
    /// Creates it: dual stack, `app=<name>` selected, port 80 (TCP) to 8080 and 81 (UDP) to 8081, and `wanted` merged into
    /// its spec (JSON merge patch: objects are merged, lists replaced, null removes).
    pub(crate) fn create(
        api: &ApiHandle,
        namespace: &str,
        name: &str,
        family: IpFamily,
        wanted: &Value,
    ) -> Result<Self> {
        let mut spec = json!({
            "ipFamilyPolicy": "PreferDualStack",
            "selector": {"app": name},
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"},
                {"name": "udp", "port": 81, "targetPort": 8081, "protocol": "UDP"},
            ],
        });
        merge(&mut spec, wanted);
        let object = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        });
        api.create(&object).with_context(|| format!("creating the Service {name}"))?;
        Ok(Self { api: api.clone(), namespace: namespace.to_owned(), name: name.to_owned(), family })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The object as it is now.
    pub(crate) fn object(&self) -> Result<Service> {
        Ok(self.api.get(&self.namespace, &self.name)?)
    }

    /// Changes its spec (JSON merge patch).
    pub(crate) fn patch(&self, spec: Value) -> Result<()> {
        self.patch_object(&json!({"spec": spec}))
    }

    /// Changes its labels (JSON merge patch: null removes one).
    pub(crate) fn label(&self, labels: Value) -> Result<()> {
        self.patch_object(&json!({"metadata": {"labels": labels}}))
    }

    /// Changes the object (JSON merge patch).
    pub(crate) fn patch_object(&self, patch: &Value) -> Result<()> {
        let patched = self.api.patch_value("services", &self.namespace, &self.name, patch);
        patched.map(drop).with_context(|| format!("changing the Service {}: {patch}", self.name))
    }

    /// Sets the addresses of its load balancer, as a cloud controller does (`{"ip": …, "ipMode": "VIP"}`).
    pub(crate) fn ingress(&self, addresses: &[IpAddr]) -> Result<()> {
        self.ingress_with(addresses.iter().map(|ip| json!({"ip": ip.to_string(), "ipMode": "VIP"})).collect())
    }

    /// Sets `status.loadBalancer.ingress`.
    pub(crate) fn ingress_with(&self, ingress: Vec<Value>) -> Result<()> {
        let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        self.api.patch_status_value("services", &self.namespace, &self.name, &status)?;
        Ok(())
    }

    /// Deletes it.
    pub(crate) fn delete(&self) -> Result<()> {
        Ok(self.api.delete::<Service>(&self.namespace, &self.name)?)
    }

    /// Its cluster IPs.
    pub(crate) fn cluster_ips(&self) -> Result<Vec<IpAddr>> {
        let ips = self.object()?.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
        Ok(ips.iter().filter_map(|ip| ip.parse().ok()).collect())
    }

    /// Its cluster IP of the title's family.
    pub(crate) fn cluster_ip(&self) -> Result<IpAddr> {
        self.family.pick(&self.cluster_ips()?).with_context(|| format!("the Service {}", self.name))
    }

    /// Its cluster IP of the title's family, with a port.
    pub(crate) fn cluster(&self, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.cluster_ip()?, port))
    }

    /// The node port of the port with this number and protocol.
    pub(crate) fn node_port(&self, port: u16, protocol: Protocol) -> Result<u16> {
        let ports = self.object()?.spec.and_then(|spec| spec.ports).unwrap_or_default();
        let wanted = |it: &&k8s_openapi::api::core::v1::ServicePort| {
            it.port == i32::from(port) && it.protocol.as_deref().unwrap_or("TCP") == protocol.name()
        };
        let number = ports.iter().find(wanted).and_then(|it| it.node_port);
        let number = number.and_then(|it| u16::try_from(it).ok()).filter(|it| *it != 0);
        number.with_context(|| {
            format!("the Service {} has no node port for {port}/{}", self.name, protocol.name())
        })
    }

    /// An address with the node port of a TCP port.
    pub(crate) fn node(&self, node: IpAddr, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(node, self.node_port(port, Protocol::Tcp)?))
    }

    /// An address with the node port of a UDP port.
    pub(crate) fn node_udp(&self, node: IpAddr, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(node, self.node_port(port, Protocol::Udp)?))
    }

    /// The health check node port.
    pub(crate) fn health_port(&self) -> Result<u16> {
        let port = self.object()?.spec.and_then(|spec| spec.health_check_node_port).unwrap_or_default();
        let port = u16::try_from(port).ok().filter(|port| *port != 0);
        port.with_context(|| format!("the Service {} has no health check node port", self.name))
    }
}

/// A JSON merge patch (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            target.as_object_mut().map(|object| object.remove(key));
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}
