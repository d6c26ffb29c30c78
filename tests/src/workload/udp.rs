//! A UDP client on a connected socket, so that ICMP errors reach it.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::net::UdpSocket;

use super::{NetError, in_time};
use crate::netns::Namespace;

/// A connected UDP socket of one place.
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
}

impl UdpClient {
    /// A socket connected to `to`, from a source address and port of choice (`None` and 0: the kernel's).
    ///
    /// # Errors
    /// The source is taken or not one of the place's, or there is no route.
    pub async fn connect(
        at: &impl AsRef<Namespace>,
        to: SocketAddr,
        source: Option<IpAddr>,
        source_port: u16,
    ) -> Result<Self, NetError> {
        at.as_ref().run(connect(to, source, source_port)).await
    }

    /// The client's own end.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn local(&self) -> Result<SocketAddr, NetError> {
        Ok(self.socket.local_addr()?)
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// Also those that an earlier datagram caused ([`NetError::Refused`]).
    pub async fn send(&self, message: &str) -> Result<(), NetError> {
        self.socket.send(message.as_bytes()).await?;
        Ok(())
    }

    /// Waits for one datagram.
    ///
    /// # Errors
    /// [`NetError::Timeout`], or [`NetError::Refused`] after an ICMP port-unreachable.
    pub async fn receive(&self, limit: Duration) -> Result<String, NetError> {
        let mut buffer = vec![0; 65_536];
        let length = in_time(limit, async { Ok(self.socket.recv(&mut buffer).await?) }).await?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// Sends one datagram and waits for one.
    ///
    /// # Errors
    /// As [`UdpClient::send`] and [`UdpClient::receive`].
    pub async fn ask(&self, message: &str, limit: Duration) -> Result<String, NetError> {
        self.send(message).await?;
        self.receive(limit).await
    }
}

async fn connect(to: SocketAddr, source: Option<IpAddr>, source_port: u16) -> Result<UdpClient, NetError> {
    let from = SocketAddr::new(source.unwrap_or_else(|| crate::lab::any_like(to.ip())), source_port);
    let socket = UdpSocket::bind(from).await?;
    socket.connect(to).await?;
    Ok(UdpClient { socket })
}
