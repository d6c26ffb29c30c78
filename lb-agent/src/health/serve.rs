//! One listener: connections in, answers out.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tracing::debug;

use super::Health;
use super::answer::answer;
use super::bind::listen;
use crate::model::{Family, ObjectName};

/// Connections at a time; further ones wait to be accepted.
pub(super) const CONNECTIONS: usize = 256;
/// How long a request may take to arrive.
const REQUEST: Duration = Duration::from_secs(5);
/// How long a connection may live, whatever goes over it: load balancers make a new one then.
const LIFE: Duration = Duration::from_secs(60);
/// Pause after an accept that failed for lack of something, descriptors for example.
const PAUSE: Duration = Duration::from_millis(50);

/// An open listener; dropping it closes it and its connections.
#[derive(Debug)]
pub(super) struct Listener {
    service: ObjectName,
    task: AbortHandle,
}

impl Listener {
    /// Opens a listener that answers for a Service.
    pub(super) fn open(address: SocketAddr, service: ObjectName, health: Health) -> io::Result<Self> {
        let listener = listen(address)?;
        let task = tokio::spawn(accept(listener, service.clone(), health)).abort_handle();
        Ok(Self { service, task })
    }

    /// The Service it answers for.
    pub(super) fn service(&self) -> &ObjectName {
        &self.service
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, service: ObjectName, health: Health) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // Never closed, so that it cannot fail.
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (service, health) = (service.clone(), health.clone());
                connections.spawn(async move {
                    // Whatever went wrong, the client knows it already.
                    let _ = tokio::time::timeout(LIFE, converse(stream, &service, &health)).await;
                    drop(place);
                });
            }
            Err(error) => {
                debug!(%service, %error, "health check connection not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(stream: TcpStream, service: &ObjectName, health: &Health) -> io::Result<()> {
    let family = Family::of(stream.local_addr()?.ip());
    let respond = service_fn(async |_| {
        answer(service, health.local_endpoints(service, family), health.proxy_is_healthy(service))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .serve_connection(TokioIo::new(stream), respond);
    connection.await.map_err(io::Error::other)
}
