//! A client outside the cluster: a host on the underlay that knows nothing of pod addresses.

use std::{
    net::IpAddr,
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use super::{
    cidr::Cidr,
    process::{self, Surroundings},
    wiring,
};
use crate::netns::Namespace;

/// A host outside the cluster; clones are handles to the same one. It lives as long as its lab.
#[derive(Clone, Debug)]
pub struct Client(pub(crate) Arc<ClientInner>);

#[derive(Debug)]
pub(crate) struct ClientInner {
    pub(crate) name: String,
    pub(crate) namespace: Namespace,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Client {
    /// The client's name (`c1`).
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    /// All addresses, IPv4 first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.0.addresses
    }

    /// The primary address.
    pub fn address(&self) -> IpAddr {
        self.0.addresses[0]
    }

    /// Adds a route, e.g. to a load balancer address through a node.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn add_route(&self, to: Cidr, via: IpAddr) -> anyhow::Result<()> {
        let links = self.0.namespace.links();
        self.0.namespace.block_on(async move {
            links.add_route(to.address(), to.length(), Some(via), wiring::ETH0).await
        })
    }

    /// Runs a program on the client to the end; kills it after `limit`.
    ///
    /// # Errors
    /// The program cannot be started, or the time was over. An exit code other than 0 is no error.
    pub async fn exec(&self, argv: &[&str], env: &[(&str, &str)], limit: Duration) -> anyhow::Result<Output> {
        process::output(self.command(argv, env)?, limit).await
    }

    /// The prepared command behind [`Client::exec`], for callers that handle input and output themselves.
    ///
    /// # Errors
    /// `argv` is empty, or the client is gone.
    pub fn command(&self, argv: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Command> {
        let argv: Vec<String> = argv.iter().map(|argument| (*argument).to_owned()).collect();
        let env: Vec<(String, String)> =
            env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        process::command(&self.0.namespace, &Surroundings::default(), &argv, &env)
    }
}

impl AsRef<Namespace> for Client {
    fn as_ref(&self) -> &Namespace {
        &self.0.namespace
    }
}
