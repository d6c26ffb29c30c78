//! Counters: per-CPU arrays of words, a row for each Service port and each backend.

/// Words of a service counter row.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceStat {
    /// Connections opened.
    Connections = 0,
    /// Packets from clients.
    Packets = 1,
    /// Bytes from clients, from the IP header on.
    Bytes = 2,
    /// Packets to clients.
    ReplyPackets = 3,
    /// Bytes to clients, from the IP header on.
    ReplyBytes = 4,
    /// Packets refused with a port unreachable.
    Refused = 5,
    /// Packets dropped.
    Dropped = 6,
    /// Flows that chose another endpoint: a repeated SYN, or UDP whose endpoint stopped serving.
    Reselected = 7,
    /// Flows that made room for newer ones because the Service had more than its share of the connection table.
    Recycled = 8,
    /// Connections that the endpoint answered.
    Handshakes = 9,
    /// Microseconds from the first SYN to its answer, of all of them.
    HandshakeMicros = 10,
}

impl ServiceStat {
    /// Words in a row.
    pub const WORDS: usize = 11;
}

/// Words of a backend counter row.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendStat {
    /// Connections opened.
    Connections = 0,
    /// Packets to the endpoint.
    Packets = 1,
    /// Bytes to the endpoint, from the IP header on.
    Bytes = 2,
    /// Packets from the endpoint.
    ReplyPackets = 3,
    /// Bytes from the endpoint, from the IP header on.
    ReplyBytes = 4,
    /// Connections that it answered.
    Handshakes = 5,
    /// Microseconds from the first SYN to its answer, of all of them.
    HandshakeMicros = 6,
}

impl BackendStat {
    /// Words in a row.
    pub const WORDS: usize = 7;
}
