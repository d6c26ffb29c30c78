//! An EndpointSlice, reduced to what S-11 and S-12 use.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Family, Few, ObjectName, Protocol, Rare};

/// Namespace and name of a slice.
pub type SliceName = ObjectName;

/// One EndpointSlice of a family we serve (FQDN slices never get here, S-04).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The slice's own name.
    pub name: SliceName,
    /// The Service it belongs to: label `kubernetes.io/service-name`, same namespace (S-02).
    pub service: ObjectName,
    /// Family of every address in it (`addressType`).
    pub family: Family,
    /// Ports with a name and a non-zero number (S-11).
    pub ports: Few<EndpointPort>,
    /// The endpoints with a usable address.
    pub endpoints: Vec<Endpoint>,
}

/// One port of a slice. Joined to a Service port by name and protocol, never by number (S-11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// Port name; `""` for the unnamed port.
    pub name: Arc<str>,
    /// Transport protocol, absent = TCP.
    pub protocol: Protocol,
    /// The port of the endpoint, host order.
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]` (S-12).
    pub address: IpAddr,
    /// Its conditions, defaults filled in.
    pub conditions: Conditions,
    /// `nodeName`, when set and not empty.
    pub node_name: Option<Arc<str>>,
    /// `hints.forZones[].name`.
    pub zone_hints: Rare<Arc<str>>,
    /// `hints.forNodes[].name`.
    pub node_hints: Rare<Arc<str>>,
}

/// Endpoint conditions after the defaults of S-12: absent `ready` and `serving` are true, absent `terminating` is false.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// May take new connections.
    pub ready: bool,
    /// Is able to answer, ready or terminating.
    pub serving: bool,
    /// Is shutting down.
    pub terminating: bool,
}
