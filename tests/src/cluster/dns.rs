//! The cluster's name server: its manifest, what a container of its image does, and a DNS client that is asked by hand.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, ensure};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use crate::{
    apiserver::ApiHandle,
    dns::{self, DnsServer},
    lab::{Container, ContainerHandle, Family, Lab, LabRuntime},
    netns::{Namespace, lock},
    runtime::RuntimeFuture,
};

const PORT: u16 = 53;

/// Service and Deployment of the name server, as a real cluster has them.
pub(super) fn manifest(family: Family) -> String {
    let families: &[(&str, &str)] = &[("IPv4", Lab::KUBE_DNS[0]), ("IPv6", Lab::KUBE_DNS[1])];
    let wanted = match family {
        Family::V4 => &families[..1],
        Family::V6 => &families[1..],
        Family::Dual => families,
    };
    let list = |pick: fn(&(&'static str, &'static str)) -> &'static str| {
        wanted.iter().map(|family| format!("'{}'", pick(family))).collect::<Vec<_>>().join(", ")
    };
    let policy = if wanted.len() == 2 { "RequireDualStack" } else { "SingleStack" };
    format!(
        r"
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system, labels: {{k8s-app: kube-dns}}}}
spec:
  clusterIP: '{}'
  clusterIPs: [{}]
  ipFamilies: [{}]
  ipFamilyPolicy: {policy}
  selector: {{k8s-app: kube-dns}}
  ports:
  - {{name: dns, port: 53, protocol: UDP}}
  - {{name: dns-tcp, port: 53, protocol: TCP}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: coredns, namespace: kube-system, labels: {{k8s-app: kube-dns}}}}
spec:
  replicas: 1
  selector: {{matchLabels: {{k8s-app: kube-dns}}}}
  template:
    metadata: {{labels: {{k8s-app: kube-dns}}}}
    spec:
      containers:
      - name: coredns
        image: registry.k8s.io/coredns/coredns:v1.12.1
        ports:
        - {{name: dns, containerPort: 53, protocol: UDP}}
        - {{name: dns-tcp, containerPort: 53, protocol: TCP}}
",
        wanted[0].1,
        list(|family| family.1),
        list(|family| family.0),
    )
}

/// Teaches the kubelets the name server's image.
pub(super) fn register(runtime: &LabRuntime, api: &ApiHandle) {
    let api = api.clone();
    runtime.register(
        "registry.k8s.io/coredns/coredns",
        std::sync::Arc::new(move |container| {
            let api = api.clone();
            Box::pin(async move { start(&container, &api) })
        }),
    );
}

fn start(container: &Container, api: &ApiHandle) -> anyhow::Result<Box<dyn ContainerHandle>> {
    let any: IpAddr = if container.addresses.iter().any(IpAddr::is_ipv6) {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let (namespace, address) = (&container.namespace, SocketAddr::new(any, PORT));
    let udp = namespace.udp_socket(address).context("UDP port 53")?;
    let tcp = namespace.tcp_listener(address).context("TCP port 53")?;
    let server = dns::serve(udp, tcp, api, dns::Options::default())?;
    Ok(Box::new(NameServer(Mutex::new(Some(server)))))
}

/// A running name server; `None` once stopped.
struct NameServer(Mutex<Option<DnsServer>>);

impl ContainerHandle for NameServer {
    fn stop(&self, _grace: Duration) -> RuntimeFuture<'_, ()> {
        drop(lock(&self.0).take());
        Box::pin(async { Ok(()) })
    }
}

/// Transport of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A connection.
    Tcp,
}

/// Asks the name server at an address, from a place in the network, and returns the answers as text.
///
/// # Errors
/// No answer within 3 seconds, or one that says no.
pub async fn dns_query(
    at: &impl AsRef<Namespace>,
    server: IpAddr,
    transport: Transport,
    name: &str,
    kind: RecordType,
) -> anyhow::Result<Vec<String>> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut query = Query::query(Name::from_ascii(name)?, kind);
    query.query_class = DNSClass::IN;
    message.queries.push(query);
    let question = message.to_vec()?;
    let to = SocketAddr::new(server, PORT);
    let exchange = async move {
        match transport {
            Transport::Udp => ask_udp(to, &question).await,
            Transport::Tcp => ask_tcp(to, &question).await,
        }
    };
    let limited = async move { timeout(Duration::from_secs(3), exchange).await };
    let answer = at.as_ref().run(limited).await.with_context(|| format!("no answer from {to}"))??;
    let answer = Message::from_vec(&answer)?;
    let code = answer.metadata.response_code;
    ensure!(code == ResponseCode::NoError, "{name}: {code}");
    Ok(answer.answers.iter().map(|record| record.data.to_string()).collect())
}

async fn ask_udp(to: SocketAddr, question: &[u8]) -> anyhow::Result<Vec<u8>> {
    let socket = UdpSocket::bind(SocketAddr::new(crate::lab::any_like(to.ip()), 0)).await?;
    socket.connect(to).await?;
    socket.send(question).await?;
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

async fn ask_tcp(to: SocketAddr, question: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_u16(question.len().try_into()?).await?;
    stream.write_all(question).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
