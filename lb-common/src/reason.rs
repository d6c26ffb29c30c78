//! Why a packet was dropped or refused. Numbers are part of the table layout: never renumbered.

/// One counted reason. `repr(u8)` and dense, so that it indexes the counter table.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The Service has no usable endpoint: refused with a port unreachable (S-21).
    NoEndpoint = 1,
    /// Traffic policy is Local and no endpoint is on this node: dropped (S-22).
    NoLocalEndpoint = 2,
    /// The address is a cluster IP, the port is none of its Service's: refused (S-23).
    UnknownPort = 3,
    /// The address lies in a Service CIDR and belongs to no Service: dropped (S-23).
    UnallocatedAddress = 4,
    /// Echo request, or another protocol without ports, to a cluster IP: dropped, so that it cannot loop (S-70).
    NotProxied = 5,
    /// A later fragment addressed to a Service whose first one, which has the ports, did not come in time (S-72).
    Fragment = 6,
    /// A header addressed to a cluster IP is truncated or contradicts itself.
    Malformed = 7,
    /// TCP reset, or SCTP ABORT or SHUTDOWN COMPLETE, to a Service of a flow we do not know: nobody to give it to.
    ResetWithoutFlow = 8,
    /// The connection table took no entry.
    ConnectionTableFull = 9,
    /// Every source port tried for a flow to an endpoint already talks to it through another address.
    NoFreePort = 10,
    /// Selection met a slot or backend that is not there; the agent and the kernel disagree.
    TableInconsistent = 11,
    /// The rewritten packet could not be stored: the kernel refused to make it writable.
    RewriteFailed = 12,
    /// The refusal could not be built: the kernel refused to resize the packet.
    RefusalFailed = 13,
    /// A refusal not sent because the packet itself may not be answered (RFC 1122 3.2.2).
    RefusalForbidden = 14,
    /// The source is in none of the Service's source ranges: dropped (S-34).
    SourceNotAllowed = 15,
    /// The node has no address of the family to masquerade with.
    NoMasqueradeAddress = 16,
    /// The source of a packet to a Service is a cluster IP, or an address that no sender has: nobody could answer.
    SpoofedSource = 17,
    /// A later fragment that came before its first one, and there was no room to hold it (S-72).
    FragmentsFull = 18,
    /// An ICMP error addressed to a cluster IP about a flow we do not know: nobody to give it to (S-71).
    UnrelatedError = 19,
}

impl Reason {
    /// Number of counters: one more than the highest reason.
    pub const COUNTERS: u32 = 20;

    /// All reasons in the order of their numbers.
    pub const ALL: [Self; 19] = [
        Self::NoEndpoint,
        Self::NoLocalEndpoint,
        Self::UnknownPort,
        Self::UnallocatedAddress,
        Self::NotProxied,
        Self::Fragment,
        Self::Malformed,
        Self::ResetWithoutFlow,
        Self::ConnectionTableFull,
        Self::NoFreePort,
        Self::TableInconsistent,
        Self::RewriteFailed,
        Self::RefusalFailed,
        Self::RefusalForbidden,
        Self::SourceNotAllowed,
        Self::NoMasqueradeAddress,
        Self::SpoofedSource,
        Self::FragmentsFull,
        Self::UnrelatedError,
    ];

    /// The name used in tables, JSON and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoEndpoint => "no_endpoint",
            Self::NoLocalEndpoint => "no_local_endpoint",
            Self::UnknownPort => "unknown_port",
            Self::UnallocatedAddress => "unallocated_address",
            Self::NotProxied => "not_proxied",
            Self::Fragment => "fragment",
            Self::Malformed => "malformed",
            Self::ResetWithoutFlow => "reset_without_flow",
            Self::ConnectionTableFull => "connection_table_full",
            Self::NoFreePort => "no_free_port",
            Self::TableInconsistent => "table_inconsistent",
            Self::RewriteFailed => "rewrite_failed",
            Self::RefusalFailed => "refusal_failed",
            Self::RefusalForbidden => "refusal_forbidden",
            Self::SourceNotAllowed => "source_not_allowed",
            Self::NoMasqueradeAddress => "no_masquerade_address",
            Self::SpoofedSource => "spoofed_source",
            Self::FragmentsFull => "fragments_full",
            Self::UnrelatedError => "unrelated_error",
        }
    }

    /// One sentence for the person who reads the counter.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::NoEndpoint => "refused: the Service has no usable endpoint",
            Self::NoLocalEndpoint => "dropped: traffic policy Local and no endpoint on this node",
            Self::UnknownPort => "refused: a cluster IP, but none of its Service's ports",
            Self::UnallocatedAddress => "dropped: an address of the Service CIDR that no Service has",
            Self::NotProxied => "dropped: ping or another protocol that Services do not carry",
            Self::Fragment => "dropped: an IP fragment whose first one did not come in time",
            Self::Malformed => "dropped: truncated or contradictory headers",
            Self::ResetWithoutFlow => "dropped: TCP reset or SCTP abort of an unknown flow",
            Self::ConnectionTableFull => "dropped: the connection table took no entry",
            Self::NoFreePort => "dropped: every source port tried is in use towards the endpoint",
            Self::TableInconsistent => "dropped: slot or backend missing (please report)",
            Self::RewriteFailed => "dropped: the kernel could not make the packet writable",
            Self::RefusalFailed => "dropped: the kernel could not resize the packet for a refusal",
            Self::RefusalForbidden => "dropped: packets to broadcast or multicast are never refused",
            Self::SourceNotAllowed => "dropped: the client is in none of loadBalancerSourceRanges",
            Self::NoMasqueradeAddress => {
                "dropped: no address of this node to masquerade with (see --node-ip)"
            }
            Self::SpoofedSource => {
                "dropped: sent to a Service from a cluster IP or another impossible source"
            }
            Self::FragmentsFull => "dropped: an IP fragment ahead of its first one, and no room to hold it",
            Self::UnrelatedError => "dropped: an ICMP error to a cluster IP about an unknown flow",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_names_unique() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index + 1);
        }
        assert_eq!(Reason::ALL.len() as u32 + 1, Reason::COUNTERS);
        let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
