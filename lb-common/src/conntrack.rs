//! The life of a connection: states, transitions, timeouts. Names and times follow the kernel's own
//! connection tracking (`net/netfilter/nf_conntrack_proto_tcp.c`, `nf_conntrack_proto_udp.c`).

use crate::proto::{self, tcp};

/// State of a flow, kept in its forward entry. TCP has the numbers below 16, UDP those from there to 23, SCTP the others.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// TCP: the client's first packet passed, nothing came back yet.
    SynSent = 1,
    /// TCP: the endpoint answered the SYN.
    SynReceived = 2,
    /// TCP: both sides talk.
    Established = 3,
    /// TCP: the client closed its direction.
    FinWaitClient = 4,
    /// TCP: the endpoint closed its direction.
    FinWaitEndpoint = 5,
    /// TCP: the endpoint acknowledged the client's FIN and may go on sending.
    CloseWaitClient = 6,
    /// TCP: the client acknowledged the endpoint's FIN and may go on sending.
    CloseWaitEndpoint = 7,
    /// TCP: both directions closed, last acknowledgement outstanding.
    LastAck = 8,
    /// TCP: closed in order.
    TimeWait = 9,
    /// TCP: reset.
    Closed = 10,
    /// UDP: nothing came back yet.
    Unreplied = 16,
    /// UDP: both sides talk.
    Replied = 17,
}

/// Which way a packet of a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the endpoint.
    Forward,
    /// From the endpoint to the client.
    Reply,
}

impl State {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::FinWaitClient,
        Self::FinWaitEndpoint,
        Self::CloseWaitClient,
        Self::CloseWaitEndpoint,
        Self::LastAck,
        Self::TimeWait,
        Self::Closed,
        Self::Unreplied,
        Self::Replied,
    ];

    /// The state of a flow at its first packet.
    #[inline(always)]
    pub const fn initial(protocol: u8) -> Self {
        if protocol == proto::TCP { Self::SynSent } else { Self::Unreplied }
    }

    /// The state with that number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u8 == number)
    }

    /// Name as the kernel's tools print it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "SYN_SENT",
            Self::SynReceived => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWaitClient | Self::FinWaitEndpoint => "FIN_WAIT",
            Self::CloseWaitClient | Self::CloseWaitEndpoint => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Closed => "CLOSE",
            Self::Unreplied => "UNREPLIED",
            Self::Replied => "REPLIED",
        }
    }
}

/// True for the states of UDP.
#[inline(always)]
pub const fn is_udp(state: u8) -> bool {
    matches!(state, 16..24)
}

/// The state after a packet, as numbers because that is what table entries hold (an unknown number stays as it is).
///
/// `flags` is byte 13 of the TCP header; ignored for UDP.
#[inline(always)]
pub const fn next(state: u8, direction: Direction, flags: u8) -> u8 {
    const UNREPLIED: u8 = State::Unreplied as u8;
    const REPLIED: u8 = State::Replied as u8;
    if is_udp(state) {
        return match direction {
            Direction::Reply if state == UNREPLIED => REPLIED,
            _ => state,
        };
    }
    if flags & tcp::RST != 0 {
        return State::Closed as u8;
    }
    if flags & tcp::FIN != 0 {
        return after_fin(state, direction);
    }
    after_segment(state, direction, flags)
}

#[inline(always)]
const fn after_fin(state: u8, direction: Direction) -> u8 {
    const SYN_SENT: u8 = State::SynSent as u8;
    const ESTABLISHED: u8 = State::Established as u8;
    const FIN_CLIENT: u8 = State::FinWaitClient as u8;
    const CLOSE_CLIENT: u8 = State::CloseWaitClient as u8;
    const FIN_ENDPOINT: u8 = State::FinWaitEndpoint as u8;
    const CLOSE_ENDPOINT: u8 = State::CloseWaitEndpoint as u8;
    match (state, direction) {
        (SYN_SENT..=ESTABLISHED, Direction::Forward) => FIN_CLIENT,
        (SYN_SENT..=ESTABLISHED, Direction::Reply) => FIN_ENDPOINT,
        (FIN_CLIENT | CLOSE_CLIENT, Direction::Reply)
        | (FIN_ENDPOINT | CLOSE_ENDPOINT, Direction::Forward) => State::LastAck as u8,
        _ => state,
    }
}

#[inline(always)]
const fn after_segment(state: u8, direction: Direction, flags: u8) -> u8 {
    const SYN_SENT: u8 = State::SynSent as u8;
    const SYN_RECEIVED: u8 = State::SynReceived as u8;
    const FIN_CLIENT: u8 = State::FinWaitClient as u8;
    const FIN_ENDPOINT: u8 = State::FinWaitEndpoint as u8;
    const LAST_ACK: u8 = State::LastAck as u8;
    match (state, direction) {
        (SYN_SENT, Direction::Reply) if flags & tcp::SYN != 0 => SYN_RECEIVED,
        // No SYN in the answer: the flow was picked up in its middle.
        (SYN_SENT, Direction::Reply) => State::Established as u8,
        (SYN_RECEIVED, Direction::Forward) if flags & tcp::SYN == 0 => State::Established as u8,
        (FIN_CLIENT, Direction::Reply) => State::CloseWaitClient as u8,
        (FIN_ENDPOINT, Direction::Forward) => State::CloseWaitEndpoint as u8,
        (LAST_ACK, _) if flags & tcp::SYN == 0 => State::TimeWait as u8,
        _ => state,
    }
}

/// True when packets without SYN, FIN or RST change nothing, so that the flow cache may answer for them.
#[inline(always)]
pub const fn is_settled(state: u8) -> bool {
    const ESTABLISHED: u8 = State::Established as u8;
    const CLOSE_CLIENT: u8 = State::CloseWaitClient as u8;
    const CLOSE_ENDPOINT: u8 = State::CloseWaitEndpoint as u8;
    const REPLIED: u8 = State::Replied as u8;
    matches!(state, ESTABLISHED | CLOSE_CLIENT | CLOSE_ENDPOINT | REPLIED)
}

/// Seconds without an answer after which a repeated SYN may choose another endpoint: three transmissions of
/// the first SYN (RFC 6298: after 1 and 3 seconds) went unanswered.
pub const UNANSWERED_SYN: u32 = 3;

/// True when a SYN on this entry starts a new connection: the old one is over, or was never answered.
#[inline(always)]
pub const fn syn_selects_again(state: u8, age: u32) -> bool {
    const SYN_SENT: u8 = State::SynSent as u8;
    const LAST_ACK: u8 = State::LastAck as u8;
    const TIME_WAIT: u8 = State::TimeWait as u8;
    const CLOSED: u8 = State::Closed as u8;
    matches!(state, LAST_ACK | TIME_WAIT | CLOSED) || (state == SYN_SENT && age >= UNANSWERED_SYN)
}

/// Seconds of silence after which an entry is removed, by state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP: 24 h, what kube-proxy sets (S-54); the kernel's own default is five days.
    pub established: u32,
    /// Half-closed TCP: one hour, what kube-proxy sets (S-54).
    pub close_wait: u32,
    /// UDP without an answer.
    pub udp: u32,
    /// UDP with answers.
    pub udp_stream: u32,
}

impl Timeouts {
    /// The defaults named at each field.
    pub const DEFAULT: Self = Self { established: 86_400, close_wait: 3_600, udp: 30, udp_stream: 120 };

    /// Seconds of silence that a flow in this state survives.
    pub const fn of(&self, state: State) -> u32 {
        match state {
            State::SynSent | State::FinWaitClient | State::FinWaitEndpoint | State::TimeWait => 120,
            State::SynReceived => 60,
            State::Established => self.established,
            State::CloseWaitClient | State::CloseWaitEndpoint => self.close_wait,
            State::LastAck => 30,
            State::Closed => 10,
            State::Unreplied => self.udp,
            State::Replied => self.udp_stream,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::Direction::{Forward, Reply};
    use super::*;
    use crate::proto::tcp::{ACK, FIN, RST, SYN};

    fn run(packets: &[(Direction, u8)]) -> Vec<State> {
        let mut state = State::SynSent as u8;
        let mut seen = Vec::new();
        for (direction, flags) in packets {
            state = next(state, *direction, *flags);
            seen.push(State::from_number(state).unwrap());
        }
        seen
    }

    #[test]
    fn a_connection_from_handshake_to_time_wait() {
        let states = run(&[
            (Reply, SYN | ACK),
            (Forward, ACK),
            (Reply, ACK),
            (Forward, FIN | ACK),
            (Reply, ACK),
            (Reply, FIN | ACK),
            (Forward, ACK),
        ]);
        use State::*;
        assert_eq!(
            states,
            [SynReceived, Established, Established, FinWaitClient, CloseWaitClient, LastAck, TimeWait]
        );
    }

    #[test]
    fn a_repeated_fin_does_not_close_the_other_direction() {
        let states = run(&[
            (Reply, SYN | ACK),
            (Forward, ACK),
            (Reply, FIN | ACK),
            (Reply, FIN | ACK),
            (Forward, ACK),
        ]);
        assert_eq!(states.last(), Some(&State::CloseWaitEndpoint));
    }

    #[test]
    fn a_refused_connection_is_closed_and_its_port_may_be_used_again() {
        let states = run(&[(Reply, RST | ACK)]);
        assert_eq!(states, [State::Closed]);
        assert!(syn_selects_again(State::Closed as u8, 0));
    }

    #[test]
    fn a_syn_does_not_disturb_a_live_connection() {
        assert!(!syn_selects_again(State::Established as u8, 1000));
        assert!(!syn_selects_again(State::SynReceived as u8, 1000));
        assert_eq!(next(State::Established as u8, Forward, SYN), State::Established as u8);
    }

    #[test]
    fn a_repeated_syn_waits_for_a_slow_endpoint_first() {
        assert!(!syn_selects_again(State::SynSent as u8, UNANSWERED_SYN - 1));
        assert!(syn_selects_again(State::SynSent as u8, UNANSWERED_SYN));
    }

    #[test]
    fn a_flow_met_in_its_middle_is_established_by_the_answer() {
        assert_eq!(run(&[(Reply, ACK)]), [State::Established]);
    }

    #[test]
    fn udp_is_replied_once_and_stays_so() {
        let once = next(State::Unreplied as u8, Reply, 0xff);
        assert_eq!(once, State::Replied as u8);
        assert_eq!(next(once, Forward, 0), once);
        assert_eq!(next(State::Unreplied as u8, Forward, 0), State::Unreplied as u8);
    }

    proptest! {
        #[test]
        fn every_state_has_a_known_successor_and_settled_states_rest(
            state in proptest::sample::select(&State::ALL[..]), forward: bool, flags: u8,
        ) {
            let (number, direction) = (state as u8, if forward { Forward } else { Reply });
            let after = next(number, direction, flags);
            prop_assert!(State::from_number(after).is_some());
            if is_settled(number) && (is_udp(number) || flags & (SYN | FIN | RST) == 0) {
                prop_assert_eq!(after, number);
            }
        }
    }
}
