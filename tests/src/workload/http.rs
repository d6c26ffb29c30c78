//! An HTTP/1.1 client that shows what happens on the network underneath.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Method, Request, StatusCode, Uri,
    client::conn::http1::{SendRequest, handshake},
    header::{HOST, HeaderMap, HeaderValue},
};
use hyper_util::rt::TokioIo;

use super::{
    DEFAULT_TIMEOUT, NetError, in_time,
    resolve::lookup,
    tcp::{self, TcpOptions},
};
use crate::netns::Namespace;

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The client's own end of the connection.
    pub local: SocketAddr,
    /// From the first packet (name resolution included) to the last byte of the body.
    pub elapsed: Duration,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Asks for `url` (`http://name-or-address[:port][/path]`; `http://` and the path may be left out) on a new connection,
/// and waits 5 seconds at most.
///
/// # Errors
/// See [`NetError`].
pub async fn http_get(at: &impl AsRef<Namespace>, url: &str) -> Result<Response, NetError> {
    HttpRequest::get(url).send(at).await
}

/// A request, for when [`http_get`] is not enough.
#[derive(Debug, Clone)]
pub struct HttpRequest {
    url: String,
    method: Method,
    timeout: Duration,
    tcp: TcpOptions,
}

impl HttpRequest {
    /// A GET request.
    pub fn get(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            method: Method::GET,
            timeout: DEFAULT_TIMEOUT,
            tcp: TcpOptions::default(),
        }
    }

    /// How long everything together may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How the connection is opened (source address and port).
    #[must_use]
    pub fn tcp(mut self, options: TcpOptions) -> Self {
        self.tcp = options;
        self
    }

    /// Sends it on a new connection, which is closed afterwards.
    ///
    /// # Errors
    /// See [`NetError`].
    pub async fn send(&self, at: &impl AsRef<Namespace>) -> Result<Response, NetError> {
        let (request, namespace) = (self.clone(), at.as_ref().name().to_owned());
        at.as_ref()
            .run(async move {
                let limit = request.timeout;
                in_time(limit, async move {
                    let begin = Instant::now();
                    let target = Target::parse(&request.url)?;
                    let mut connection = Open::new(&namespace, &target, request.tcp).await?;
                    let mut response = connection.ask(&target.path, request.method, true).await?;
                    response.elapsed = begin.elapsed();
                    Ok(response)
                })
                .await
            })
            .await
    }

    /// Opens a connection that stays open for several requests.
    ///
    /// # Errors
    /// See [`NetError`].
    pub async fn connect(&self, at: &impl AsRef<Namespace>) -> Result<HttpConnection, NetError> {
        let namespace = at.as_ref().clone();
        let (request, name) = (self.clone(), namespace.name().to_owned());
        let open = namespace
            .run(async move {
                let target = Target::parse(&request.url)?;
                in_time(request.timeout, Open::new(&name, &target, request.tcp)).await
            })
            .await?;
        Ok(HttpConnection { open, timeout: self.timeout })
    }
}

/// An open keep-alive connection.
#[derive(Debug)]
pub struct HttpConnection {
    open: Open,
    timeout: Duration,
}

impl HttpConnection {
    /// Asks for a path on this connection.
    ///
    /// # Errors
    /// See [`NetError`].
    pub async fn get(&mut self, path: &str) -> Result<Response, NetError> {
        in_time(self.timeout, self.open.ask(path, Method::GET, false)).await
    }

    /// The client's own end.
    pub fn local(&self) -> SocketAddr {
        self.open.local
    }

    /// The other end, as the client sees it: the address it connected to.
    pub fn peer(&self) -> SocketAddr {
        self.open.peer
    }
}

/// Where a request goes.
pub(crate) struct Target {
    host: String,
    port: u16,
    authority: String,
    pub(crate) path: String,
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self, NetError> {
        let bad = |why: &dyn std::fmt::Display| NetError::Other(format!("URL {url}: {why}"));
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = full.parse().map_err(|error| bad(&error))?;
        let authority = uri.authority().ok_or_else(|| bad(&"no host"))?;
        Ok(Self {
            host: authority.host().to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.to_string(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }
}

/// A connection in the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Open {
    sender: SendRequest<Empty<Bytes>>,
    host: HeaderValue,
    pub(crate) local: SocketAddr,
    peer: SocketAddr,
}

impl Open {
    /// The other end, as the client sees it.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Connects to the first address that accepts, from the namespace of the current thread, called `namespace`.
    pub(crate) async fn new(namespace: &str, target: &Target, tcp: TcpOptions) -> Result<Self, NetError> {
        let mut last = NetError::Dns(format!("{}: no address", target.host));
        for address in lookup(namespace, &target.host).await? {
            match tcp::connect(SocketAddr::new(address, target.port), tcp).await {
                Ok(stream) => {
                    let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
                    let (sender, connection) =
                        handshake(TokioIo::new(stream)).await.map_err(|error| classify(&error))?;
                    // Its end is seen by the requests on it.
                    tokio::spawn(connection);
                    let host = HeaderValue::from_str(&target.authority)
                        .map_err(|error| NetError::Other(error.to_string()))?;
                    return Ok(Self { sender, host, local, peer });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Sends one request and reads the whole answer.
    pub(crate) async fn ask(
        &mut self,
        path: &str,
        method: Method,
        close: bool,
    ) -> Result<Response, NetError> {
        let begin = Instant::now();
        let mut request = Request::builder().method(method).uri(path).header(HOST, self.host.clone());
        if close {
            request = request.header("connection", "close");
        }
        let request =
            request.body(Empty::<Bytes>::new()).map_err(|error| NetError::Other(error.to_string()))?;
        self.sender.ready().await.map_err(|error| classify(&error))?;
        let answer = self.sender.send_request(request).await.map_err(|error| classify(&error))?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| classify(&error))?.to_bytes();
        Ok(Response {
            status: head.status,
            headers: head.headers,
            body,
            local: self.local,
            elapsed: begin.elapsed(),
        })
    }
}

/// What an error of hyper means on the network.
fn classify(error: &hyper::Error) -> NetError {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return std::io::Error::new(io.kind(), io.to_string()).into();
        }
        cause = inner.source();
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        NetError::Closed
    } else if error.is_parse() {
        NetError::BadAnswer(error.to_string())
    } else {
        NetError::Other(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::Target;

    #[test]
    fn urls_are_forgiving() {
        let target = Target::parse("payment").unwrap();
        assert_eq!((target.host.as_str(), target.port, target.path.as_str()), ("payment", 80, "/"));
        let target = Target::parse("http://[fd00::1]:8080/echo?msg=x").unwrap();
        assert_eq!((target.host.as_str(), target.port), ("[fd00::1]", 8080));
        assert_eq!((target.authority.as_str(), target.path.as_str()), ("[fd00::1]:8080", "/echo?msg=x"));
        assert!(Target::parse("http://").is_err());
    }
}
