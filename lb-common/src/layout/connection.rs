//! Entries of the connection tables (kernel hash memory, the truth) and of the flow cache in front of them.

use crate::address::Address;
use crate::byteorder::Be16;
use crate::tuple::{Rewrite, Tuple};

/// Bits of [`ConnEntry::flags`].
#[derive(Clone, Copy, Debug)]
pub enum ConnFlags {}

impl ConnFlags {
    /// The entry of the endpoint's answers; without it, of the client's packets.
    pub const REPLY: u8 = 1;
    /// Client and endpoint are the same pod (S-31): both directions are turned round at the pod's device.
    pub const HAIRPIN: u8 = 2;
    /// The client is outside: its packets come in, and its answers leave, at a network device.
    pub const NET: u8 = 4;
    /// On its way to the endpoint the flow gets an address of the node as its source, in a pair of entries of its own
    /// ([`Self::SOURCE`]) that is made where the first packet leaves.
    pub const MASQUERADE: u8 = 8;
    /// One of the pair of entries that translate the source of a flow whose destination is translated already.
    pub const SOURCE: u8 = 16;
}

/// One direction of a flow. The key is the [`Tuple`] that its packets arrive with.
///
/// The two entries of a flow point at each other: the key of the other one is `rewrite.reply(protocol)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnEntry<A> {
    /// What its packets become.
    pub rewrite: Rewrite<A>,
    /// Index of the Service port.
    pub service: u32,
    /// Index of the backend when the flow began.
    pub backend: u32,
    /// Monotonic second of the first packet.
    pub created: u32,
    /// Monotonic second of the last packet that reached this table.
    pub last_seen: u32,
    /// Reply entries: the client's device, 0 when unknown.
    pub interface: u32,
    /// Reply entries: the client's MAC address.
    pub mac: [u8; 6],
    /// Number of a [`crate::conntrack::State`]; the forward entry's counts.
    pub state: u8,
    /// [`ConnFlags`].
    pub flags: u8,
    /// Answer entries of masqueraded flows: the source port that the flow got, 0 when it has none yet. A pair of
    /// [`ConnFlags::SOURCE`] entries that has to be made again gets it again.
    pub masquerade_port: Be16,
    /// Fraction of the second `created`, see [`crate::handshake::Moment`]; the forward entry's counts.
    pub created_fraction: u16,
}

/// What the flow cache answers.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowAction {
    /// None of our business: leave it untouched.
    Pass = 0,
    /// Rewrite, then let the stack find the way.
    Stack = 1,
    /// Rewrite and hand to the peer of `interface` (a local pod).
    Peer = 2,
    /// Rewrite and send out of `interface`, neighbour resolved by the kernel.
    Neighbour = 3,
    /// Rewrite and send back out of the device it came in by (hairpin).
    Back = 4,
}

/// One entry of the flow cache: a private copy, a CPU each, of what the tables said about a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry<A> {
    /// The flow, with the hook it was seen at.
    pub tuple: Tuple<A>,
    /// What its packets become.
    pub rewrite: Rewrite<A>,
    /// Generation of the tuple (low half) and epoch (high half) at the time of the copy.
    pub tag: u64,
    /// Low 32 bits of the kernel's jiffies at the time of the copy.
    pub stamp: u32,
    /// Index of the Service port.
    pub service: u32,
    /// Index of the backend.
    pub backend: u32,
    /// Device for [`FlowAction::Peer`] and [`FlowAction::Neighbour`].
    pub interface: u32,
    /// Destination MAC for [`FlowAction::Peer`] and [`FlowAction::Back`].
    pub mac: [u8; 6],
    /// Number of a [`FlowAction`].
    pub action: u8,
    /// [`FlowEntry::REPLY`], [`FlowEntry::COMPLETE_CHECKSUM`] and [`FlowEntry::SOURCE`].
    pub flags: u8,
}

impl<A: Address> FlowEntry<A> {
    /// The entry is of the endpoint's answers.
    pub const REPLY: u8 = 1;
    /// A packet of this flow carried a completed checksum: one that looks like a pseudo-header sum may be a
    /// coincidence, and the kernel has to be asked.
    pub const COMPLETE_CHECKSUM: u8 = 2;
    /// The entry translates the source of a masqueraded flow, or back: its packets are counted where their destination is
    /// translated.
    pub const SOURCE: u8 = 4;
    /// Entries in a set.
    pub const WAYS: usize = 2;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Ip4, Ip6};

    #[test]
    fn entries_have_no_hidden_padding() {
        assert_eq!(size_of::<ConnEntry<Ip4>>(), 16 + 5 * 4 + 8 + 4);
        assert_eq!(size_of::<ConnEntry<Ip6>>(), 40 + 5 * 4 + 8 + 4);
        assert_eq!(size_of::<FlowEntry<Ip4>>(), 64);
        assert_eq!(size_of::<FlowEntry<Ip6>>(), 112);
    }
}
