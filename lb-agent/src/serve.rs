//! What the agent tells of itself over HTTP: whether it is well (`:10256`), and metrics, configuration and mode
//! (`:10249`), at the paths that kube-proxy has (S-60, S-62).
//!
//! One listener a server, opened again until it can be had; every answer is worked out anew for its request.

mod bind;
mod health;
mod http;
mod status;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use tokio::net::TcpListener;
use tracing::{info, warn};

pub(crate) use bind::{Families, is_no_such_family, listen};
pub use health::ProxyAnswers;
pub use http::Answer;
#[cfg(test)]
pub(crate) use http::CONNECTIONS;
pub(crate) use http::{accept, answer};
pub(crate) use status::MODE;
pub use status::StatusAnswers;

/// How long a failed bind waits for its next attempt.
const BIND_AGAIN: Duration = Duration::from_secs(2);

/// A server that may still wait for its address.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    address: SocketAddr,
    listener: Option<TcpListener>,
}

impl Server {
    /// Opens a listener. With `must` a failure is final; else [`run`](Self::run) tries again. Needs a tokio runtime.
    ///
    /// # Errors
    /// With `must`: the address cannot be had.
    pub fn open(name: &'static str, address: SocketAddr, must: bool) -> io::Result<Self> {
        let listener = match listen(address, Families::OfAddress) {
            Ok(listener) => {
                info!(%address, "{name} server listens");
                Some(listener)
            }
            Err(error) if must => return Err(error),
            Err(error) => {
                warn!(%address, %error, "{name} server does not listen yet; tried again until it does");
                None
            }
        };
        Ok(Self { name, address, listener })
    }

    /// Serves for as long as it is polled.
    pub async fn run<R, F>(self, respond: R)
    where
        R: Fn(SocketAddr, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send,
    {
        let Self { name, address, mut listener } = self;
        loop {
            if let Some(listener) = listener {
                return accept(listener, name, respond).await;
            }
            tokio::time::sleep(BIND_AGAIN).await;
            listener = listen(address, Families::OfAddress).ok();
            if listener.is_some() {
                info!(%address, "{name} server listens");
            }
        }
    }
}

/// The answer to a path that means nothing.
fn not_found() -> Answer {
    answer(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n")
}

#[cfg(test)]
#[path = "serve/serve_tests.rs"]
mod tests;
