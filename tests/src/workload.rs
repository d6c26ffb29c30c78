//! What runs in pods: servers and clients as tasks of this process, no images, no external programs.
//!
//! Servers: [`Netexec`] (HTTP and UDP, after the agnhost image's `netexec`), [`TcpEcho`], [`Bulk`], [`SctpServer`]. Clients: [`http_get`]
//! and [`HttpRequest`], [`tcp_connect`], [`UdpClient`], [`Bulk::transfer`], [`ping`], and [`Load`], which keeps asking and
//! writes down what happened. All of them take the place they run at: a pod, a node, a client or a bare namespace
//! (`impl AsRef<Namespace>`).

mod bulk;
mod echo;
mod flood;
mod fragments;
mod frames;
mod http;
mod load;
mod netexec;
mod ping;
pub(crate) mod probe;
pub mod registry;
mod resolve;
mod sctp;
mod segments;
mod snmp;
mod tcp;
mod udp;

use std::{io, time::Duration};

use serde::{Deserialize, Serialize};

pub use bulk::{Bulk, BulkReport, Direction};
pub use echo::TcpEcho;
pub use flood::Flood;
pub use fragments::{RawSender, ReverseEcho, udp_fragments};
pub use frames::Frames;
pub use http::{HttpConnection, HttpRequest, Response, http_get};
pub use load::{Failure, Load, LoadReport, RunningLoad};
pub use netexec::{Netexec, Server};
pub use ping::ping;
pub use probe::{Told, UdpKind, serve as serve_probe};
pub use resolve::resolve;
pub use sctp::{SctpClient, SctpServer, sctp_ask};
pub use segments::{Segment, Segments};
pub use snmp::checksum_errors;
pub use tcp::{TcpOptions, tcp_connect, tcp_connect_with};
pub use udp::UdpClient;

/// How long clients wait, unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a client got no answer, as an application would see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NetError {
    /// The port is closed: a TCP reset in answer to the SYN, or an ICMP port-unreachable.
    #[error("connection refused")]
    Refused,
    /// No answer in time.
    #[error("timed out")]
    Timeout,
    /// An established connection was reset.
    #[error("connection reset")]
    Reset,
    /// The connection was closed before the answer was complete.
    #[error("connection closed")]
    Closed,
    /// No route, or an ICMP host- or network-unreachable.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The name did not resolve.
    #[error("name resolution: {0}")]
    Dns(String),
    /// An answer that is none: not HTTP, wrong content, wrong status.
    #[error("bad answer: {0}")]
    BadAnswer(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl From<io::Error> for NetError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
                Self::Reset
            }
            io::ErrorKind::UnexpectedEof => Self::Closed,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                Self::Unreachable(error.to_string())
            }
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Runs `work` for at most `limit`.
pub(crate) async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, NetError>>,
) -> Result<T, NetError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(NetError::Timeout))
}
