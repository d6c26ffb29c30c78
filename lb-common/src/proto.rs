//! Protocol numbers and header constants the datapath knows.

/// IP protocol number of ICMP (RFC 792).
pub const ICMP: u8 = 1;
/// IP protocol number of TCP (RFC 9293).
pub const TCP: u8 = 6;
/// IP protocol number of UDP (RFC 768).
pub const UDP: u8 = 17;
/// IP protocol number of ICMPv6 (RFC 4443).
pub const ICMPV6: u8 = 58;
/// IP protocol number of SCTP (RFC 9260).
pub const SCTP: u8 = 132;

/// True for the protocols that Services carry: those with ports.
#[inline(always)]
pub const fn is_proxied(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | SCTP)
}

/// TCP flag bits as they lie in byte 13 of the header.
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Acknowledgement field is significant.
    pub const ACK: u8 = 0x10;
}
