//! `test/e2e/network/networking.go`: "Networking", its granular checks of Services first of all: every kind of client, both
//! protocols, cluster IP and node ports.

#[path = "networking/heal.rs"]
mod heal;
#[path = "networking/sctp.rs"]
mod sctp;
#[path = "networking/urls.rs"]
mod urls;

use std::sync::atomic::{AtomicU16, Ordering};

use crate::{
    case::{ask, netexec},
    prelude::*,
};

/// The titles.
pub(crate) fn groups() -> Vec<Group> {
    let mut granular = both_families();
    granular.extend([
        Title::new("should function for multiple endpoint-Services with same selector", same_selector),
        Title::new("should update nodePort: http", |case| node_port_goes(case, Protocol::Tcp)),
        Title::new("should update nodePort: udp", |case| node_port_goes(case, Protocol::Udp)),
        Title::new("should support basic nodePort: udp functionality", basic_udp_node_port),
    ]);
    vec![
        Group::new("networking.go", "Networking Granular Checks: Services", granular),
        Group::new("networking.go", "Networking", heal::titles()),
        Group::new("networking.go", "Networking", urls::titles()),
    ]
}

/// Those that are there for the secondary family, too (`dual_stack.go`).
pub(crate) fn both_families() -> Vec<Title> {
    let mut titles = Vec::new();
    for (protocol, name) in [(Protocol::Tcp, "http"), (Protocol::Udp, "udp")] {
        let title = |what: &str| format!("should {what}: {name}");
        titles.extend([
            Title::new(title("function for pod-Service"), move |case| from_pod(case, protocol)),
            Title::new(title("function for node-Service"), move |case| from_node(case, protocol)),
            Title::new(title("function for endpoint-Service"), move |case| from_endpoint(case, protocol)),
            Title::new(title("update endpoints"), move |case| endpoints_change(case, protocol)),
            Title::new(title("function for client IP based session affinity"), move |case| {
                affinity(case, protocol)
            }),
            Title::new(title("be able to handle large requests"), move |case| large_requests(case, protocol)),
        ]);
    }
    titles.extend(sctp::titles());
    titles.push(Title::new("should function for service endpoints using hostNetwork", host_endpoints));
    titles
}

/// Port of the Service `web`.
fn port(protocol: Protocol) -> u16 {
    if protocol == Protocol::Tcp { 80 } else { 81 }
}

/// A node port Service in front of a server on each node, as upstream's `NetworkingTestConfig`.
struct Setting {
    service: Svc,
    servers: Vec<PodClient>,
}

impl Setting {
    async fn new(case: &Case, mut spec: Value) -> Result<Self> {
        spec["type"] = "NodePort".into();
        let service = case.service("web", spec)?;
        let mut servers = Vec::new();
        for node in 0..3 {
            servers.push(case.backend("web", node).await?);
        }
        Ok(Self { service, servers })
    }

    fn names(&self) -> Vec<&str> {
        self.servers.iter().map(PodClient::name).collect()
    }

    /// The cluster IP, then the node port at this node and at another one.
    fn frontends(&self, case: &Case, own: usize, protocol: Protocol) -> Result<[SocketAddr; 3]> {
        let (number, other) = (self.service.node_port(port(protocol), protocol)?, (own + 1) % 3);
        Ok([
            self.service.cluster(port(protocol))?,
            SocketAddr::new(case.node_ip(own)?, number),
            SocketAddr::new(case.node_ip(other)?, number),
        ])
    }

    /// The client on this node meets every server at every frontend.
    async fn dial(&self, case: &Case, client: &Caller, node: usize, protocol: Protocol) -> Result<()> {
        for to in self.frontends(case, node, protocol)? {
            case.comes_to_reach(client, to, protocol, &self.names()).await?;
        }
        Ok(())
    }
}

async fn from_pod(case: Case, protocol: Protocol) -> Result<()> {
    let setting = Setting::new(&case, json!({})).await?;
    let client = case.pod("test-container-pod", 0).await?;
    setting.dial(&case, &client, 0, protocol).await
}

async fn from_node(case: Case, protocol: Protocol) -> Result<()> {
    let setting = Setting::new(&case, json!({})).await?;
    for node in [0, 2] {
        setting.dial(&case, &case.host(node), node, protocol).await?;
    }
    Ok(())
}

async fn from_endpoint(case: Case, protocol: Protocol) -> Result<()> {
    let setting = Setting::new(&case, json!({})).await?;
    // Each of them is among those that may answer it.
    for (node, server) in setting.servers.iter().enumerate() {
        setting.dial(&case, server, node, protocol).await?;
    }
    Ok(())
}

async fn same_selector(case: Case) -> Result<()> {
    let setting = Setting::new(&case, json!({})).await?;
    let second = case.service("second", json!({"type": "NodePort", "selector": {"app": "web"}}))?;
    let client = &setting.servers[0];
    let names = setting.names();
    let node = case.node_ip(1)?;
    let both = [second.cluster(80)?, second.node(node, 80)?];
    setting.dial(&case, client, 0, Protocol::Tcp).await?;
    for to in both {
        case.comes_to_reach(client, to, Protocol::Tcp, &names).await?;
    }
    let gone = setting.service.node(node, 80)?;
    setting.service.delete()?;
    case.unreachable(client, gone, Protocol::Tcp).await?;
    for to in both {
        case.reaches(client, to, Protocol::Tcp, &names).await?;
    }
    Ok(())
}

async fn endpoints_change(case: Case, protocol: Protocol) -> Result<()> {
    let mut setting = Setting::new(&case, json!({})).await?;
    let client = case.pod("test-container-pod", 0).await?;
    let callers = [client.caller().clone(), case.host(0), case.outside(0)];
    setting.dial(&case, &client, 0, protocol).await?;
    let gone = setting.servers.remove(0);
    case.delete_pod(gone.name(), Duration::ZERO)?;
    for caller in &callers {
        setting.dial(&case, caller, 0, protocol).await?;
    }
    // Recovery.
    setting.servers.push(case.backend("web", 0).await?);
    for caller in &callers {
        setting.dial(&case, caller, 0, protocol).await?;
    }
    Ok(())
}

async fn node_port_goes(case: Case, protocol: Protocol) -> Result<()> {
    let setting = Setting::new(&case, json!({})).await?;
    let [_, own, other] = setting.frontends(&case, 0, protocol)?;
    let callers = [case.host(0), case.pod("client", 0).await?.caller().clone(), case.outside(0)];
    for caller in &callers {
        setting.dial(&case, caller, 0, protocol).await?;
    }
    setting.service.delete()?;
    for caller in &callers {
        for to in [own, other] {
            case.unreachable(caller, to, protocol).await?;
        }
    }
    Ok(())
}

async fn basic_udp_node_port(case: Case) -> Result<()> {
    let setting = Setting::new(&case, json!({})).await?;
    let number = setting.service.node_port(81, Protocol::Udp)?;
    for caller in [case.host(1), case.outside(0)] {
        for node in 0..3 {
            let to = SocketAddr::new(case.node_ip(node)?, number);
            case.comes_to_reach(&caller, to, Protocol::Udp, &setting.names()).await?;
        }
    }
    Ok(())
}

async fn affinity(case: Case, protocol: Protocol) -> Result<()> {
    let setting = Setting::new(&case, json!({"sessionAffinity": "ClientIP"})).await?;
    let client = case.pod("test-container-pod", 0).await?;
    for (caller, at) in [(client.caller().clone(), 0), (case.host(0), 0), (case.outside(0), 1)] {
        let to = setting.frontends(&case, 0, protocol)?[at];
        case.visible("the first answer", async || ask(&caller, to, protocol).await, Result::is_ok).await?;
        let first = ask(&caller, to, protocol).await?;
        case.stays("affinity", 15, async || ask(&caller, to, protocol).await, is(&first)).await?;
    }
    Ok(())
}

/// Two thousand bytes, as upstream sends them: more than a device's MTU. A datagram of them comes in two fragments.
async fn large_requests(case: Case, protocol: Protocol) -> Result<()> {
    let setting = Setting::new(&case, json!({})).await?;
    let client = case.pod("test-container-pod", 0).await?;
    let message = "42".repeat(1000);
    let (path, datagram) = (format!("/echo?msg={message}"), format!("echo {message}"));
    for caller in [client.caller().clone(), case.host(0), case.outside(0)] {
        setting.dial(&case, &caller, 0, protocol).await?;
        for to in setting.frontends(&case, 0, protocol)? {
            let echo = async || match protocol {
                Protocol::Tcp => Ok(caller.http(to, &path).await?.body),
                Protocol::Udp => caller.datagram(to, &datagram).await,
            };
            case.stays("the echo", 6, echo, is(&message)).await?;
        }
    }
    Ok(())
}

async fn host_endpoints(case: Case) -> Result<()> {
    // One port on all nodes, which no other title's server has: above those of `Case::host_pod`, below node ports.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let http = 28_000 + 2 * (NEXT.fetch_add(1, Ordering::Relaxed) % 900);
    let udp = http + 1;
    let service = case.service(
        "web",
        json!({"type": "NodePort", "ports": [
            {"name": "http", "port": 80, "targetPort": http, "protocol": "TCP"},
            {"name": "udp", "port": 81, "targetPort": udp, "protocol": "UDP"},
        ]}),
    )?;
    let mut servers = Vec::new();
    for node in 0..3 {
        // A UDP server on all addresses would answer from any of them: upstream tells such pods the node's own.
        let own: Vec<String> = case.node(node).addresses().iter().map(ToString::to_string).collect();
        let flags = [
            format!("--http-port={http}"),
            format!("--udp-port={udp}"),
            format!("--udp-listen-addresses={}", own.join(",")),
        ];
        let containers = json!([netexec(&flags.each_ref().map(String::as_str))]);
        let spec = json!({"hostNetwork": true, "containers": containers});
        servers.push(case.pod_with(&format!("netserver-{node}"), node, json!({"app": "web"}), spec).await?);
    }
    let setting = Setting { service, servers };
    let client = case.pod("test-container-pod", 0).await?;
    for caller in [client.caller().clone(), case.host(0), case.outside(0)] {
        for protocol in Protocol::BOTH {
            setting.dial(&case, &caller, 0, protocol).await?;
        }
    }
    Ok(())
}
