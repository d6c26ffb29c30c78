//! What `lb-agent watch` is told of: records in the ring buffer.

use crate::address::Ip6;
use crate::byteorder::Be16;
use crate::conntrack::State;

/// What happened.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A connection began: an endpoint was chosen.
    Opened = 1,
    /// The endpoint answered the SYN.
    Answered = 2,
    /// A connection ended, or seems to: closed, refused by the endpoint, reset.
    Closed = 3,
    /// A packet was refused with a port unreachable.
    Refused = 4,
    /// A packet was dropped.
    Dropped = 5,
}

impl EventKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Opened, Self::Answered, Self::Closed, Self::Refused, Self::Dropped];

    /// Name, as it is printed and asked for.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Answered => "answered",
            Self::Closed => "closed",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
        }
    }

    /// The kind with that number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// What the transition of a flow to a state is, if anything that is told of.
    #[inline(always)]
    pub const fn of_transition(old: u8, new: u8) -> Option<Self> {
        if crate::handshake::is_answer(old, new) {
            return Some(Self::Answered);
        }
        const TIME_WAIT: u8 = State::TimeWait as u8;
        const CLOSED: u8 = State::Closed as u8;
        const RESET_BY_CLIENT: u8 = State::ResetByClient as u8;
        const RESET_BY_ENDPOINT: u8 = State::ResetByEndpoint as u8;
        const DISSOLVED: u8 = State::Dissolved as u8;
        const ABORTED_BY_CLIENT: u8 = State::AbortedByClient as u8;
        const ABORTED_BY_ENDPOINT: u8 = State::AbortedByEndpoint as u8;
        match new {
            _ if old == new => None,
            TIME_WAIT | CLOSED | RESET_BY_CLIENT | RESET_BY_ENDPOINT | DISSOLVED | ABORTED_BY_CLIENT
            | ABORTED_BY_ENDPOINT => Some(Self::Closed),
            _ => None,
        }
    }
}

/// What is to be told of: word [`super::Control::Watch`]. 0 is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Monotonic second at which it ends, unless it is asked for again.
    pub until: u32,
    /// Bits by number of an [`EventKind`].
    pub kinds: u8,
    /// Only Services that stand in the table of watched ones.
    pub services: bool,
    /// Records a second on a CPU at the most.
    pub rate: u16,
}

impl Watch {
    /// From the word.
    #[inline(always)]
    pub const fn decode(word: u64) -> Self {
        Self {
            until: word as u32,
            kinds: (word >> 32) as u8,
            services: word >> 40 & 1 != 0,
            rate: (word >> 48) as u16,
        }
    }

    /// The word.
    pub const fn encode(self) -> u64 {
        self.until as u64
            | (self.kinds as u64) << 32
            | (self.services as u64) << 40
            | (self.rate as u64) << 48
    }

    /// True when events of a kind are wanted at a second.
    #[inline(always)]
    pub const fn wants(self, kind: u8, second: u32) -> bool {
        self.kinds >> (kind & 7) & 1 != 0 && (self.until.wrapping_sub(second) as i32) > 0
    }
}

/// A record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds of the monotonic clock.
    pub nanos: u64,
    /// The client; IPv4 addresses are mapped (RFC 4291 2.5.5.2).
    pub client: Ip6,
    /// What it connected to.
    pub frontend: Ip6,
    /// Where the connection went, unspecified when it went nowhere.
    pub endpoint: Ip6,
    /// Index of the Service port, 0 when there is none.
    pub service: u32,
    /// [`EventKind::Answered`]: microseconds since the client's first SYN.
    pub micros: u32,
    /// Device the packet was met at.
    pub interface: u32,
    /// The client's port; 0, like the next one, when nobody read it.
    pub client_port: Be16,
    /// The frontend's port.
    pub frontend_port: Be16,
    /// The endpoint's port.
    pub endpoint_port: Be16,
    /// IP protocol.
    pub protocol: u8,
    /// Number of an [`EventKind`].
    pub kind: u8,
    /// Number of a [`crate::reason::Reason`], of what was refused or dropped.
    pub reason: u8,
    /// Number of a [`State`], of what was closed.
    pub state: u8,
    /// Always 0.
    pub zero: u16,
}

impl Event {
    /// Bytes of a record.
    pub const LENGTH: usize = 80;

    /// Bytes of the ring buffer: some 2900 records.
    pub const RING: u32 = 256 << 10;

    /// From the bytes of a record; `None` when they are of another length.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LENGTH] = bytes.try_into().ok()?;
        let word = |at: usize| u64::from_ne_bytes(core::array::from_fn(|index| bytes[at + index]));
        let address = |at| Ip6::from_raw(word(at), word(at + 8));
        let half = |at: usize| u32::from_ne_bytes(core::array::from_fn(|index| bytes[at + index]));
        let port = |at: usize| Be16::from_raw(u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
        Some(Self {
            nanos: word(0),
            client: address(8),
            frontend: address(24),
            endpoint: address(40),
            service: half(56),
            micros: half(60),
            interface: half(64),
            client_port: port(68),
            frontend_port: port(70),
            endpoint_port: port(72),
            protocol: bytes[74],
            kind: bytes[75],
            reason: bytes[76],
            state: bytes[77],
            zero: 0,
        })
    }
}

/// Words of a CPU's row about the rate of records.
#[derive(Clone, Copy, Debug)]
pub enum EventRate {}

impl EventRate {
    /// The second of the clock that is counted.
    pub const SECOND: usize = 0;
    /// Records in it.
    pub const COUNT: usize = 1;
    /// Records left out since the beginning: too many, or no room.
    pub const LOST: usize = 2;
    /// Words in the row.
    pub const WORDS: usize = 3;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_no_hidden_padding_and_comes_back_from_its_bytes() {
        assert_eq!(size_of::<Event>(), Event::LENGTH);
        let bytes: [u8; Event::LENGTH] =
            core::array::from_fn(|index| if index < 78 { index as u8 } else { 0 });
        let event = Event::decode(&bytes).unwrap();
        assert_eq!(event.nanos, u64::from_ne_bytes([0, 1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(event.endpoint_port, Be16::from_raw(u16::from_ne_bytes([72, 73])));
        assert_eq!((event.protocol, event.kind, event.reason, event.state), (74, 75, 76, 77));
        assert_eq!(core::mem::offset_of!(Event, service), 56);
        assert_eq!(core::mem::offset_of!(Event, client_port), 68);
        assert_eq!(Event::decode(&bytes[1..]), None);
    }

    #[test]
    fn a_watch_comes_back_from_its_word_and_ends() {
        let watch = Watch { until: 100, kinds: 1 << EventKind::Refused as u8, services: true, rate: 1000 };
        assert_eq!(Watch::decode(watch.encode()), watch);
        assert!(watch.wants(EventKind::Refused as u8, 99));
        assert!(!watch.wants(EventKind::Refused as u8, 100) && !watch.wants(EventKind::Opened as u8, 99));
        assert!(!Watch::decode(0).wants(EventKind::Dropped as u8, 0));
    }

    #[test]
    fn ends_are_told_once() {
        let end = |old: State, new: State| EventKind::of_transition(old as u8, new as u8);
        assert_eq!(end(State::SynSent, State::SynReceived), Some(EventKind::Answered));
        assert_eq!(end(State::SynSent, State::Closed), Some(EventKind::Closed));
        assert_eq!(end(State::LastAck, State::TimeWait), Some(EventKind::Closed));
        assert_eq!(end(State::TimeWait, State::TimeWait), None);
        assert_eq!(end(State::SynReceived, State::Established), None);
    }
}
