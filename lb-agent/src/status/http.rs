//! A question to the agent's own servers, and nobody else's: one request, one answer, in a moment.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than an agent that is well takes.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest answer that is read: metrics of thousands of Services.
const LONGEST: u64 = 64 * 1024 * 1024;

/// Asks the server at a listening address for a path: its status code and its answer.
///
/// # Errors
/// Nobody answers there, or not in HTTP.
pub(crate) fn get(listening: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let address = match listening.ip() {
        // Where every address is listened at, there is a loopback one of a family that the node has.
        IpAddr::V6(address) if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V4(address) if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        address => address,
    };
    let connect = |address| TcpStream::connect_timeout(&SocketAddr::new(address, listening.port()), PATIENCE);
    let mut stream = match connect(address) {
        Err(_) if listening.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => connect(Ipv6Addr::LOCALHOST.into())?,
        connected => connected?,
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(LONGEST).read_to_string(&mut answer)?;
    parse(&answer).ok_or_else(|| io::Error::other(format!("{listening} does not speak HTTP")))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((code, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_code_and_a_body() {
        assert_eq!(parse("HTTP/1.0 503 x\r\na: b\r\n\r\nno\n"), Some((503, "no\n".into())));
        assert_eq!(parse("SSH-2.0-x\r\n\r\n"), None);
    }
}
