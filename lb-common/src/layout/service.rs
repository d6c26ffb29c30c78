//! Service rows. A publish word for each traffic class: storing it switches that class over, whole, at once.

use super::FrontendKind;

/// What a Service does with a new connection.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServiceVerdict {
    /// The row is not in use.
    Unused = 0,
    /// One of the slots at random, all alike (S-41).
    Random = 1,
    /// Refuse with a port unreachable (S-21).
    Reject = 2,
    /// Drop (S-22).
    Drop = 3,
    /// The slot that the client's hash names ([`Algorithm::Maglev`]).
    Maglev = 4,
}

/// How a new connection gets one of a Service's slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// By chance: a slot for every endpoint.
    #[default]
    Random,
    /// By a hash of the client, from a Maglev table: the same on every node, and nearly the same after a change.
    Maglev,
}

impl Algorithm {
    /// As flags, annotations and JSON have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Maglev => "maglev",
        }
    }

    /// What a publish word says of a list that is chosen from like this.
    pub const fn verdict(self) -> ServiceVerdict {
        match self {
            Self::Random => ServiceVerdict::Random,
            Self::Maglev => ServiceVerdict::Maglev,
        }
    }
}

/// The publish word: slots and verdict of a Service in 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// First slot of the run.
    pub base: u32,
    /// Slots in the run, below 2^24.
    pub count: u32,
    /// Number of a [`ServiceVerdict`].
    pub verdict: u8,
}

impl Publish {
    /// The largest run of slots.
    pub const MAX_COUNT: u32 = (1 << 24) - 1;

    /// As stored.
    #[inline(always)]
    pub const fn encode(self) -> u64 {
        self.base as u64 | (self.count as u64 & Self::MAX_COUNT as u64) << 32 | (self.verdict as u64) << 56
    }

    /// From the stored word.
    #[inline(always)]
    pub const fn decode(word: u64) -> Self {
        Self { base: word as u32, count: (word >> 32) as u32 & Self::MAX_COUNT, verdict: (word >> 56) as u8 }
    }

    /// How new connections get a slot; `None` when there are no slots to get.
    #[inline(always)]
    pub const fn algorithm(self) -> Option<Algorithm> {
        const RANDOM: u8 = ServiceVerdict::Random as u8;
        const MAGLEV: u8 = ServiceVerdict::Maglev as u8;
        match self.verdict {
            RANDOM => Some(Algorithm::Random),
            MAGLEV => Some(Algorithm::Maglev),
            _ => None,
        }
    }
}

/// Traffic classes: the lists of backends that new connections choose from (2.4, 2.5). The number is the word of the
/// class's [`Publish`] in the Service row.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Any client at a cluster IP (S-30).
    Internal = 0,
    /// Clients outside the node at a node port, external IP or load balancer VIP (S-33 c).
    External = 1,
    /// Pods and processes of this node at those: the cluster's endpoints, whatever the policy (S-33 a, b).
    Cluster = 2,
}

impl Class {
    /// Every class, in the order of their words.
    pub const ALL: [Self; 3] = [Self::Internal, Self::External, Self::Cluster];

    /// The class of a client at a frontend.
    #[inline(always)]
    pub const fn of(kind: FrontendKind, client: Client) -> Self {
        match (kind, client) {
            (FrontendKind::ClusterIp, _) => Self::Internal,
            (_, Client::Outside) => Self::External,
            (_, Client::Pod | Client::Host) => Self::Cluster,
        }
    }

    /// The bit of [`super::BackendFlags`] that says: the backend is in the list of this class.
    #[inline(always)]
    pub const fn backend_flag(self) -> u16 {
        super::BackendFlags::IN_INTERNAL << self as u16
    }
}

/// Who connects.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// A pod of this node: its packets are met at its own device.
    Pod = 0,
    /// Anybody whose packets come in at a network device: hosts outside, pods of other nodes.
    Outside = 1,
    /// A process in the node's own network namespace.
    Host = 2,
}

/// What holds for a Service port beside its lists: affinity, masquerade, source ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Seconds for which a client stays with its endpoint after its last new connection; 0 for no affinity (S-40).
    pub affinity_timeout: u32,
    /// [`Policy::PRESERVE_SOURCE`], [`Policy::SOURCE_RANGES`], [`Policy::HOST_ALLOWED`]; above
    /// [`Policy::GENERATION_SHIFT`] the generation of the row.
    pub flags: u32,
}

impl Policy {
    /// External traffic policy Local: clients outside keep their address (S-33 c).
    pub const PRESERVE_SOURCE: u32 = 1;
    /// Load balancer VIPs are for the sources of [`SourceRanges`] only (S-34).
    pub const SOURCE_RANGES: u32 = 2;
    /// With source ranges: processes of this node may use the VIPs too, as a range has an address of the node (S-34).
    pub const HOST_ALLOWED: u32 = 4;
    /// Where the row's generation begins in the flags: a number that moves on whenever the row goes to another Service
    /// port, and stays in the row while nobody has it.
    pub const GENERATION_SHIFT: u32 = 8;

    /// The generation of the row, which is part of the key of affinities ([`super::AffinityKey`]).
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        self.flags >> Self::GENERATION_SHIFT
    }

    /// As stored.
    #[inline(always)]
    pub const fn encode(self) -> u64 {
        self.affinity_timeout as u64 | (self.flags as u64) << 32
    }

    /// From the stored word.
    #[inline(always)]
    pub const fn decode(word: u64) -> Self {
        Self { affinity_timeout: word as u32, flags: (word >> 32) as u32 }
    }

    /// True when the connection's source becomes an address of the node (S-30, S-33). A process of the node has one
    /// already.
    #[inline(always)]
    pub const fn masquerades(self, kind: FrontendKind, client: Client) -> bool {
        match (kind, client) {
            (_, Client::Host) => false,
            (FrontendKind::ClusterIp, _) => matches!(client, Client::Outside),
            _ => self.flags & Self::PRESERVE_SOURCE == 0,
        }
    }
}

/// Where the allowed sources of a Service port stand in [`super::Table::SourceRanges`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceRanges {
    /// First row.
    pub first: u32,
    /// Rows, at most [`SourceRanges::MAX`].
    pub count: u32,
}

impl SourceRanges {
    /// The most ranges a Service port may have.
    pub const MAX: u32 = 128;

    /// As stored.
    #[inline(always)]
    pub const fn encode(self) -> u64 {
        self.first as u64 | (self.count as u64) << 32
    }

    /// From the stored word.
    #[inline(always)]
    pub const fn decode(word: u64) -> Self {
        Self { first: word as u32, count: (word >> 32) as u32 }
    }
}

/// Shape of a service row: a [`Publish`] for each [`Class`], then [`Policy`], then [`SourceRanges`]; the rest is 0.
#[derive(Clone, Copy, Debug)]
pub enum Service {}

impl Service {
    /// Words in a row: one cache line.
    pub const WORDS: usize = 8;
    /// The word that holds the [`Policy`].
    pub const POLICY: usize = 3;
    /// The word that holds the [`SourceRanges`].
    pub const SOURCE_RANGES: usize = 4;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn publish_words_come_back_whole(base: u32, count in 0..=Publish::MAX_COUNT, verdict in 0u8..5) {
            let publish = Publish { base, count, verdict };
            prop_assert_eq!(Publish::decode(publish.encode()), publish);
        }
    }
}
