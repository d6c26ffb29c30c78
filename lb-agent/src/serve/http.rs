//! Connections in, answers out.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::debug;

/// Connections at a time; further ones wait to be accepted.
pub(crate) const CONNECTIONS: usize = 256;
/// How long a request may take to arrive.
const REQUEST: Duration = Duration::from_secs(5);
/// How long a connection may live, whatever goes over it: clients make a new one then.
const LIFE: Duration = Duration::from_secs(60);
/// Pause after an accept that failed for lack of something, descriptors for example.
const PAUSE: Duration = Duration::from_millis(50);

/// What is answered to a request.
pub type Answer = Response<Full<Bytes>>;

/// An answer that browsers take for nothing else than what it is.
pub(crate) fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Accepts connections and answers their requests. `respond` hears the local address and the request.
pub(crate) async fn accept<R, F>(listener: TcpListener, name: impl std::fmt::Display, respond: R)
where
    R: Fn(SocketAddr, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send,
{
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // Never closed, so that it cannot fail.
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let respond = respond.clone();
                connections.spawn(async move {
                    // Whatever went wrong, the client knows it already.
                    let _ = tokio::time::timeout(LIFE, converse(stream, respond)).await;
                    drop(place);
                });
            }
            Err(error) => {
                debug!(server = %name, %error, "connection not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn converse<R, F>(stream: TcpStream, respond: R) -> io::Result<()>
where
    R: Fn(SocketAddr, Request<Incoming>) -> F,
    F: Future<Output = Answer>,
{
    let local = stream.local_addr()?;
    let respond = service_fn(|request| {
        let answering = respond(local, request);
        async { Ok::<_, Infallible>(answering.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .serve_connection(TokioIo::new(stream), respond);
    connection.await.map_err(io::Error::other)
}
