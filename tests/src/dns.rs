//! The cluster's name server, as the Kubernetes DNS specification (1.1.0) wants it.
//!
//! [`serve`] answers on sockets it is given, so that it can stand in a pod's network namespace behind the `kube-dns`
//! ClusterIP. Every answer is made from the API server's objects at that moment: nothing is cached, nothing lags behind.

mod records;
mod server;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::Context;
use hickory_server::Server;
use tokio::net::{TcpListener, UdpSocket};

use crate::apiserver::ApiHandle;
use server::Handler;

/// The domain below which the cluster's names are.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// Time to live of every record, in seconds.
pub const TTL: u32 = 5;

/// How the name server is to be.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Names outside of the cluster that it knows, such as targets of ExternalName Services. There is no upstream: all
    /// other names do not exist.
    pub outside: BTreeMap<String, Vec<IpAddr>>,
}

/// A running name server; dropping it stops it.
pub struct DnsServer(Server<Handler>);

impl std::fmt::Debug for DnsServer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("DnsServer")
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.0.shutdown_token().cancel();
    }
}

/// Answers on a UDP socket and a TCP listener, as tasks of the present tokio runtime.
///
/// # Errors
/// The sockets cannot be used.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn serve(
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
    api: &ApiHandle,
    options: Options,
) -> anyhow::Result<DnsServer> {
    udp.set_nonblocking(true).context("UDP socket")?;
    tcp.set_nonblocking(true).context("TCP listener")?;
    let mut server = Server::new(Handler::new(api.clone(), options));
    server.register_socket(UdpSocket::from_std(udp).context("UDP socket")?);
    server.register_listener(
        TcpListener::from_std(tcp).context("TCP listener")?,
        Duration::from_secs(10),
        64,
    );
    Ok(DnsServer(server))
}

/// The `/etc/resolv.conf` of a pod with `dnsPolicy: ClusterFirst`.
pub fn resolv_conf(namespace: &str, kube_dns: IpAddr) -> String {
    format!(
        "nameserver {kube_dns}\nsearch {namespace}.svc.{CLUSTER_DOMAIN} svc.{CLUSTER_DOMAIN} {CLUSTER_DOMAIN}\n\
         options ndots:5\n"
    )
}
