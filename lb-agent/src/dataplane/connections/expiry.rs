//! When a flow is over: the pure part of expiry.

use lb_common::conntrack::{State, Timeouts};
use lb_common::layout::{ConnEntry, ConnFlags};
use lb_common::proto;

/// What to do about an entry, as far as it alone tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// It stays.
    Keep,
    /// It has been silent for too long; the flow goes unless its other entry saw a packet since that second.
    ExpiredUnlessSeenSince(u32),
    /// An answer entry that has been silent for a while: it goes when the forward entry is missing.
    ExpiredIfAlone,
}

/// Seconds of silence after which an answer entry without a forward entry goes. The kernel evicts what was unused
/// longest, so that the flow was not in use when its forward entry went.
const ORPHAN: u32 = 120;

/// True for the entry of an endpoint's answers.
pub(super) fn is_reply<A>(entry: &ConnEntry<A>) -> bool {
    entry.flags & ConnFlags::REPLY != 0
}

/// True for an entry of the pair that translates a masqueraded flow's source; the flow has another pair.
pub(super) fn is_of_source<A>(entry: &ConnEntry<A>) -> bool {
    entry.flags & ConnFlags::SOURCE != 0
}

/// State of a forward entry; one that no version of ours writes counts as the first of its protocol, which ends soon.
pub(super) fn state_of<A>(entry: &ConnEntry<A>, protocol: u8) -> State {
    State::from_number(entry.state).unwrap_or(State::initial(protocol))
}

/// Seconds since a point on the monotonic clock. A packet may have been seen after `now` was taken.
pub(super) const fn since(now: u32, then: u32) -> u32 {
    now.saturating_sub(then)
}

/// Judges one entry at second `now`.
pub(super) fn judge<A>(entry: &ConnEntry<A>, protocol: u8, now: u32, timeouts: &Timeouts) -> Judgement {
    let silent = since(now, entry.last_seen);
    if is_reply(entry) {
        let limit = if protocol == proto::UDP { timeouts.udp_stream.max(ORPHAN) } else { ORPHAN };
        return if silent >= limit { Judgement::ExpiredIfAlone } else { Judgement::Keep };
    }
    let timeout = timeouts.of(state_of(entry, protocol));
    if silent < timeout { Judgement::Keep } else { Judgement::ExpiredUnlessSeenSince(now - timeout) }
}

#[cfg(test)]
mod tests {
    use lb_common::address::Ip4;
    use lb_common::byteorder::Be16;
    use lb_common::tuple::Rewrite;

    use super::*;

    fn entry(state: u8, last_seen: u32, flags: u8) -> ConnEntry<Ip4> {
        let zero = Ip4::from_raw(0);
        let port = Be16::new(1);
        ConnEntry {
            rewrite: Rewrite {
                src: zero,
                dst: zero,
                src_port: port,
                dst_port: port,
                address_difference: 0,
                full_difference: 0,
            },
            service: 1,
            backend: 1,
            created: 0,
            last_seen,
            interface: 0,
            mac: [0; 6],
            state,
            flags,
            masquerade_port: Be16::new(0),
            created_fraction: 0,
        }
    }

    #[test]
    fn every_state_lives_exactly_as_long_as_its_timeout() {
        let timeouts = Timeouts::DEFAULT;
        for state in State::ALL {
            let entry = entry(state as u8, 1_000, 0);
            let protocol = if lb_common::conntrack::is_udp(state as u8) { proto::UDP } else { proto::TCP };
            let end = 1_000 + timeouts.of(state);
            assert_eq!(judge(&entry, protocol, end - 1, &timeouts), Judgement::Keep, "{state:?}");
            assert_eq!(
                judge(&entry, protocol, end, &timeouts),
                Judgement::ExpiredUnlessSeenSince(1_000),
                "{state:?}"
            );
        }
    }

    #[test]
    fn an_answer_entry_goes_only_when_it_is_alone() {
        let answers = entry(0, 1_000, ConnFlags::REPLY);
        let judged = |now| judge(&answers, proto::TCP, now, &Timeouts::DEFAULT);
        assert_eq!(judged(1_119), Judgement::Keep);
        assert_eq!(judged(1_120), Judgement::ExpiredIfAlone);
        let long = Timeouts { udp_stream: 600, ..Timeouts::DEFAULT };
        assert_eq!(judge(&answers, proto::UDP, 1_599, &long), Judgement::Keep);
        assert_eq!(judge(&answers, proto::UDP, 1_600, &long), Judgement::ExpiredIfAlone);
    }

    #[test]
    fn a_packet_that_came_after_the_clock_was_read_does_not_wrap_around() {
        let entry = entry(State::Closed as u8, 1_001, 0);
        assert_eq!(judge(&entry, proto::TCP, 1_000, &Timeouts::DEFAULT), Judgement::Keep);
    }

    #[test]
    fn a_state_nobody_knows_does_not_stay_for_a_day() {
        let entry = entry(77, 1_000, 0);
        let judged = judge(&entry, proto::TCP, 1_120, &Timeouts::DEFAULT);
        assert_eq!(judged, Judgement::ExpiredUnlessSeenSince(1_000));
    }
}
