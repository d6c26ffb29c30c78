//! The API server of a lab, whichever it is: the lab's own, or a real one.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;

use super::{
    ApiHandle, ApiServer, Options,
    control::Control,
    kubeconfig,
    real::{ASSETS, Assets, Place, RealServer},
    remote::Remote,
};
use crate::lab::Lab;

/// An API server that tests and controllers use over HTTP only, so that they do the same with either.
///
/// It is the lab's own [`ApiServer`], or a `kube-apiserver` where the variable `KUBEBUILDER_ASSETS` names a directory with
/// `etcd` and `kube-apiserver`.
pub struct ControlPlane {
    // Before the server it speaks to.
    api: ApiHandle,
    server: Server,
}

enum Server {
    Own(ApiServer),
    Real(RealServer),
}

impl ControlPlane {
    /// Starts one at a loopback port of this machine.
    ///
    /// # Errors
    /// It does not come up; says why.
    pub fn start(options: Options) -> anyhow::Result<Self> {
        Self::at(Place::Here, options)
    }

    /// Starts one on the router of a lab, at this address.
    ///
    /// # Errors
    /// There is no router, or it does not come up; says why.
    pub(crate) fn on_router(lab: &Lab, address: SocketAddr, options: Options) -> anyhow::Result<Self> {
        Self::at(Place::Router(lab, address), options)
    }

    fn at(place: Place<'_>, options: Options) -> anyhow::Result<Self> {
        if let Some(assets) = Assets::from_env()? {
            let server = RealServer::start(&assets, place, &options).context("starting a real API server")?;
            return Ok(Self { api: server.api().clone(), server: Server::Real(server) });
        }
        let listener = match place {
            Place::Here => place.loopback()?,
            Place::Router(_, address) => {
                let router = place.namespace()?.context("the underlay has no router")?;
                router.tcp_listener(address).with_context(|| format!("listening on {address}"))?
            }
        };
        let door = place.loopback().context("a port of loopback")?;
        let url = format!("http://{}", door.local_addr()?);
        let server = ApiServer::start_with_door(listener, Some(door), options)?;
        let remote = Remote::connect(place.namespace()?, &kubeconfig(&url, None, server.token()))?;
        Ok(Self { api: ApiHandle::remote(remote), server: Server::Own(server) })
    }

    /// The objects.
    pub fn api(&self) -> &ApiHandle {
        &self.api
    }

    /// Where agents and other clients find it.
    pub fn url(&self) -> String {
        match &self.server {
            Server::Own(server) => server.url(),
            Server::Real(server) => format!("https://{}", server.address()),
        }
    }

    /// A kubeconfig (YAML) for clients that reach it at this URL.
    pub fn kubeconfig(&self, url: &str) -> String {
        match &self.server {
            Server::Own(server) => server.kubeconfig(url),
            Server::Real(server) => server.kubeconfig(url),
        }
    }

    /// Whether it is a real one.
    pub fn is_real(&self) -> bool {
        matches!(self.server, Server::Real(_))
    }

    /// The lab's own server, for tests of it.
    ///
    /// # Panics
    /// It is a real one.
    pub fn own(&self) -> &ApiServer {
        match &self.server {
            Server::Own(server) => server,
            Server::Real(_) => panic!("this test is of the lab's own API server: run it without {ASSETS}"),
        }
    }

    /// The switches of what agents speak to.
    fn control(&self) -> &Control {
        match &self.server {
            Server::Own(server) => &server.control,
            Server::Real(server) => server.control().unwrap_or_else(|| {
                panic!("a real API server misbehaves in a lab only: run this test without {ASSETS}")
            }),
        }
    }

    /// The server is away for agents: open connections are cut, new ones reset as soon as they are made.
    pub fn pause(&self) {
        self.control().pause();
    }

    /// The server is back, at the same address.
    pub fn resume(&self) {
        self.control().resume();
    }

    /// Breaks every running watch of an agent in the middle of an event, then the connection is closed.
    pub fn break_watches(&self) {
        self.control().break_watches();
    }

    /// The next `count` requests of agents fail with this HTTP status.
    pub fn fail_next(&self, count: u32, status: u16) {
        self.control().settings().failing = (count, status);
    }

    /// Every answer to an agent is held back that long; zero ends it.
    pub fn slow_down(&self, delay: Duration) {
        self.control().settings().delay = delay;
    }

    /// Which token of agents is accepted from now on; `None`: no token is (401), as if it had expired.
    pub fn accept_token(&self, token: Option<&str>) {
        self.control().settings().token = token.map(str::to_owned);
    }

    /// The bearer token given at the start.
    pub fn token(&self) -> &str {
        match &self.server {
            Server::Own(server) => server.token(),
            Server::Real(server) => server.token(),
        }
    }

    /// The latest requests of agents, oldest first: `GET /api/v1/services?watch=1`.
    pub fn requests(&self) -> Vec<String> {
        self.control().settings().log.iter().cloned().collect()
    }

    /// Forgets all history: watches and lists from earlier resource versions get 410 Gone. A real server decides for itself
    /// what it forgets: there this does nothing.
    pub fn compact(&self) {
        if let Server::Own(server) = &self.server {
            server.compact();
        }
    }
}
