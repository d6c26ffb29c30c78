//! The API server of a lab, whichever it is: the lab's own, or a real one.

use std::net::SocketAddr;

use anyhow::Context;

use super::{
    ApiHandle, ApiServer, Options, kubeconfig,
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

    /// The lab's own server, which misbehaves on demand.
    ///
    /// # Panics
    /// It is a real one, which does not.
    pub fn own(&self) -> &ApiServer {
        match &self.server {
            Server::Own(server) => server,
            Server::Real(_) => panic!(
                "this test makes the API server misbehave, which only the lab's own does: run it without {ASSETS}"
            ),
        }
    }
}
