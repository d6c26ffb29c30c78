//! The Services of a node: one whose server is there, and others before it that nobody asks for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Ports at which the server listens: the two endpoints of the measured Service. They are one pod's, so that every connection
/// does the same, whichever endpoint it gets.
pub const SERVER_PORTS: [u16; 2] = [8080, 8081];

/// Port of the server that no Service leads to. An answer from an endpoint's own port would look like one of a Service's flow where a
/// client uses a source port again that it had used through the Service a moment ago.
pub const DIRECT_PORT: u16 = 8082;

/// All Services of a node.
pub struct Services {
    /// The endpoints of the measured one.
    pub(super) server: IpAddr,
    count: u32,
}

/// A Service that is there to be many.
pub(super) struct Other {
    /// Of what its names are made.
    pub(super) number: u32,
    /// Its cluster IP.
    pub(super) vip: Ipv4Addr,
    /// Its one endpoint.
    pub(super) endpoint: Ipv4Addr,
}

impl Services {
    /// Where the measured one is, with TCP and UDP: the last one, at the port that all have.
    pub const MEASURED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 255, 100)), 80);

    /// So many Services, the last of which leads to the server.
    pub(super) fn new(count: u32, server: IpAddr) -> Self {
        Self { server, count }
    }

    /// All but the measured one, in order.
    pub(super) fn others(&self) -> impl Iterator<Item = Other> {
        (1..self.count).map(|number| {
            let [_, _, high, low] = number.to_be_bytes();
            let (vip, endpoint) = (Ipv4Addr::new(10, 97, high, low), Ipv4Addr::new(10, 244, 128 | high, low));
            Other { number, vip, endpoint }
        })
    }
}
