//! The life of an SCTP association. Names, and times but where it says so, follow the kernel's own connection tracking
//! (`net/netfilter/nf_conntrack_proto_sctp.c`, Linux 6.18).
//!
//! The kernel compares verification tags and so believes an ABORT or a SHUTDOWN. Here there is no room for tags, and the
//! side that seems to have sent one is believed only while it sends nothing that it could not have sent afterwards
//! ([`sctp::LIVE`]): a forged one neither ends nor moves an association on which both sides go on talking.

use super::{Direction, State};
use crate::sctp;

const COOKIE_WAIT: u8 = State::CookieWait as u8;
const COOKIE_ECHOED: u8 = State::CookieEchoed as u8;
const ASSOCIATED: u8 = State::Associated as u8;
const SHUTDOWN_SENT: u8 = State::ShutdownSent as u8;
const SHUTDOWN_RECEIVED: u8 = State::ShutdownReceived as u8;
const SHUTDOWN_ACK_SENT: u8 = State::ShutdownAckSent as u8;
const DISSOLVED: u8 = State::Dissolved as u8;
const ABORTED_BY_CLIENT: u8 = State::AbortedByClient as u8;
const ABORTED_BY_ENDPOINT: u8 = State::AbortedByEndpoint as u8;

/// Seconds of silence in states that a forged packet leads to: longer than a live association is ever silent, which sends a
/// HEARTBEAT every 30 seconds and a retransmission timeout (RFC 9260 8.3 and 16). The kernel has 10 and 3 seconds.
pub(super) const UNPROVEN: u32 = 60;

/// The state after a packet. `flags` as in [`crate::sctp`].
#[inline(always)]
pub(super) const fn next(state: u8, direction: Direction, flags: u8) -> u8 {
    let reply = matches!(direction, Direction::Reply);
    match flags & !sctp::LIVE {
        sctp::ABORT => match state {
            COOKIE_WAIT | COOKIE_ECHOED => DISSOLVED,
            ASSOCIATED..=SHUTDOWN_ACK_SENT if reply => ABORTED_BY_ENDPOINT,
            ASSOCIATED..=SHUTDOWN_ACK_SENT => ABORTED_BY_CLIENT,
            _ => state,
        },
        sctp::SHUTDOWN_COMPLETE if state == SHUTDOWN_ACK_SENT => DISSOLVED,
        sctp::SHUTDOWN if state == ASSOCIATED => {
            if reply {
                SHUTDOWN_RECEIVED
            } else {
                SHUTDOWN_SENT
            }
        }
        sctp::SHUTDOWN_ACK => match state {
            SHUTDOWN_SENT if reply => SHUTDOWN_ACK_SENT,
            SHUTDOWN_RECEIVED if !reply => SHUTDOWN_ACK_SENT,
            _ => state,
        },
        sctp::COOKIE_ECHO if state == COOKIE_WAIT && !reply => COOKIE_ECHOED,
        // An endpoint says so only to a cookie of its own: the association stands, whatever came before.
        sctp::COOKIE_ACK if reply => match state {
            COOKIE_WAIT | COOKIE_ECHOED | DISSOLVED | ABORTED_BY_CLIENT | ABORTED_BY_ENDPOINT => ASSOCIATED,
            _ => state,
        },
        0 => after_others(state, reply, flags),
        _ => state,
    }
}

/// The state after a packet of data, acknowledgements, heartbeats.
#[inline(always)]
const fn after_others(state: u8, reply: bool, flags: u8) -> u8 {
    match state {
        // Met in its middle.
        COOKIE_WAIT | COOKIE_ECHOED if reply => ASSOCIATED,
        SHUTDOWN_SENT if !reply && flags & sctp::LIVE != 0 => ASSOCIATED,
        SHUTDOWN_RECEIVED if reply && flags & sctp::LIVE != 0 => ASSOCIATED,
        ABORTED_BY_CLIENT if !reply => ASSOCIATED,
        ABORTED_BY_ENDPOINT if reply => ASSOCIATED,
        _ => state,
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::super::Direction::{Forward, Reply};
    use super::super::{is_over, is_sctp, syn_selects_again};
    use super::*;
    use crate::sctp::*;

    fn run(state: State, packets: &[(Direction, u8)]) -> Vec<State> {
        let mut state = state as u8;
        let step = |(direction, flags): &(Direction, u8)| {
            state = next(state, *direction, *flags);
            State::from_number(state).unwrap()
        };
        packets.iter().map(step).collect()
    }

    #[test]
    fn an_association_from_init_to_shutdown_complete() {
        use State::*;
        let states = run(
            CookieWait,
            &[
                (Forward, INIT),
                (Reply, INIT_ACK),
                (Forward, COOKIE_ECHO | LIVE),
                (Reply, COOKIE_ACK),
                (Forward, LIVE),
                (Reply, 0),
                (Forward, SHUTDOWN),
                (Reply, SHUTDOWN_ACK),
                (Forward, SHUTDOWN_COMPLETE),
            ],
        );
        let expected = [
            CookieWait,
            CookieWait,
            CookieEchoed,
            Associated,
            Associated,
            Associated,
            ShutdownSent,
            ShutdownAckSent,
            Dissolved,
        ];
        assert_eq!(states, expected);
        assert!(is_over(Dissolved as u8, 0) && syn_selects_again(Dissolved as u8, 0));
    }

    #[test]
    fn the_endpoint_may_shut_down_too() {
        use State::*;
        let states =
            run(Associated, &[(Reply, SHUTDOWN), (Forward, SHUTDOWN_ACK), (Reply, SHUTDOWN_COMPLETE)]);
        assert_eq!(states, [ShutdownReceived, ShutdownAckSent, Dissolved]);
    }

    #[test]
    fn a_refused_association_is_over() {
        assert_eq!(run(State::CookieWait, &[(Reply, ABORT)]), [State::Dissolved]);
    }

    #[test]
    fn an_aborted_association_rests_until_the_side_proves_that_it_did_not_abort_it() {
        use State::*;
        assert_eq!(run(Associated, &[(Forward, ABORT), (Reply, LIVE)]), [AbortedByClient; 2]);
        assert_eq!(run(Associated, &[(Forward, ABORT), (Forward, 0)]), [AbortedByClient, Associated]);
        assert_eq!(run(Associated, &[(Reply, ABORT), (Reply, LIVE)]), [AbortedByEndpoint, Associated]);
        // The client restarts: the same endpoint gets its INIT, and says when it stands again.
        let states = run(
            AbortedByClient,
            &[(Forward, INIT), (Reply, INIT_ACK), (Forward, COOKIE_ECHO), (Reply, COOKIE_ACK)],
        );
        assert_eq!(states, [AbortedByClient, AbortedByClient, AbortedByClient, Associated]);
    }

    proptest! {
        #[test]
        fn no_packets_of_one_side_alone_move_or_end_an_association_that_both_use(
            forged in prop::collection::vec(any::<u8>(), 0..12), by_client: bool,
        ) {
            let side = if by_client { Forward } else { Reply };
            // A COOKIE ACK of the endpoint's is proof, not an attack.
            let mut state = State::Associated as u8;
            for flags in forged {
                state = next(state, side, flags);
                prop_assert!(is_sctp(state));
                prop_assert!(!is_over(state, 1000) && !syn_selects_again(state, 1000), "{:?}", State::from_number(state));
            }
            for side in [Forward, Reply] {
                state = next(state, side, LIVE);
            }
            prop_assert_eq!(state, State::Associated as u8);
        }
    }
}
