//! The life of a connection: states, transitions, timeouts. Names and times follow the kernel's own
//! connection tracking (`net/netfilter/nf_conntrack_proto_tcp.c`, `nf_conntrack_proto_udp.c`); SCTP stands in a module of its own.

mod sctp;

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
    /// TCP: refused by the endpoint, or reset after both sides had closed.
    Closed = 10,
    /// TCP: a reset came from the client's side. Whether the client sent it shows later.
    ResetByClient = 11,
    /// TCP: a reset came from the endpoint's side. Whether the endpoint sent it shows later.
    ResetByEndpoint = 12,
    /// TCP: a SYN after a reset went to the endpoint, which has not answered yet.
    ResetSyn = 13,
    /// TCP: the same, after a second or more the SYN was repeated.
    ResetSynAgain = 14,
    /// UDP: nothing came back yet.
    Unreplied = 16,
    /// UDP: both sides talk.
    Replied = 17,
    /// SCTP: the client sent an INIT.
    CookieWait = 24,
    /// SCTP: the client returned the endpoint's cookie.
    CookieEchoed = 25,
    /// SCTP: the association stands.
    Associated = 26,
    /// SCTP: the client wants to shut down.
    ShutdownSent = 27,
    /// SCTP: the endpoint wants to shut down.
    ShutdownReceived = 28,
    /// SCTP: the other side agrees.
    ShutdownAckSent = 29,
    /// SCTP: shut down in order, or refused.
    Dissolved = 30,
    /// SCTP: the client seems to have aborted the association.
    AbortedByClient = 31,
    /// SCTP: the endpoint seems to have aborted the association.
    AbortedByEndpoint = 32,
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
    pub const ALL: [Self; 25] = [
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
        Self::ResetByClient,
        Self::ResetByEndpoint,
        Self::ResetSyn,
        Self::ResetSynAgain,
        Self::Unreplied,
        Self::Replied,
        Self::CookieWait,
        Self::CookieEchoed,
        Self::Associated,
        Self::ShutdownSent,
        Self::ShutdownReceived,
        Self::ShutdownAckSent,
        Self::Dissolved,
        Self::AbortedByClient,
        Self::AbortedByEndpoint,
    ];

    /// The state of a flow at its first packet.
    #[inline(always)]
    pub const fn initial(protocol: u8) -> Self {
        match protocol {
            proto::TCP => Self::SynSent,
            proto::SCTP => Self::CookieWait,
            _ => Self::Unreplied,
        }
    }

    /// The state with that number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u8 == number)
    }

    /// Name as the kernel's tools print it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent | Self::ResetSyn | Self::ResetSynAgain => "SYN_SENT",
            Self::SynReceived => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWaitClient | Self::FinWaitEndpoint => "FIN_WAIT",
            Self::CloseWaitClient | Self::CloseWaitEndpoint => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Closed | Self::ResetByClient | Self::ResetByEndpoint => "CLOSE",
            Self::Unreplied => "UNREPLIED",
            Self::Replied => "REPLIED",
            Self::CookieWait => "COOKIE_WAIT",
            Self::CookieEchoed => "COOKIE_ECHOED",
            Self::Associated => "ESTABLISHED",
            Self::ShutdownSent => "SHUTDOWN_SENT",
            Self::ShutdownReceived => "SHUTDOWN_RECD",
            Self::ShutdownAckSent => "SHUTDOWN_ACK_SENT",
            Self::Dissolved | Self::AbortedByClient | Self::AbortedByEndpoint => "CLOSED",
        }
    }
}

/// True for the states of UDP.
#[inline(always)]
pub const fn is_udp(state: u8) -> bool {
    matches!(state, 16..24)
}

/// True for the states of SCTP.
#[inline(always)]
pub const fn is_sctp(state: u8) -> bool {
    state >= 24
}

/// The state after a packet, as numbers because that is what table entries hold (an unknown number stays as it is).
///
/// `flags` is byte 13 of the TCP header, in SCTP what [`crate::sctp::flags`] says; ignored for UDP.
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
    if is_sctp(state) {
        return sctp::next(state, direction, flags);
    }
    if flags & tcp::RST != 0 {
        return after_reset(state, direction);
    }
    if is_reset(state) {
        return after_doubt(state, direction, flags);
    }
    if flags & tcp::FIN != 0 {
        return after_fin(state, direction);
    }
    after_segment(state, direction, flags)
}

/// Nobody here knows sequence numbers, so that a reset may be anybody's who guessed two ports. Receivers tell a forged one
/// by its number and live on (RFC 5961 3): so does the flow, unless there was nothing to lose.
#[inline(always)]
const fn after_reset(state: u8, direction: Direction) -> u8 {
    const SYN_SENT: u8 = State::SynSent as u8;
    const LAST_ACK: u8 = State::LastAck as u8;
    const CLOSED: u8 = State::Closed as u8;
    match (state, direction) {
        (SYN_SENT | LAST_ACK..=CLOSED, _) => CLOSED,
        (_, Direction::Forward) => State::ResetByClient as u8,
        (_, Direction::Reply) => State::ResetByEndpoint as u8,
    }
}

/// True for the states after a reset that may have been forged.
#[inline(always)]
const fn is_reset(state: u8) -> bool {
    const FIRST: u8 = State::ResetByClient as u8;
    const LAST: u8 = State::ResetSynAgain as u8;
    matches!(state, FIRST..=LAST)
}

/// A packet after a reset. Who goes on sending did not send the reset; and an endpoint that answers a SYN with something
/// else than SYN or RST still has the connection (RFC 5961 4: a challenge ACK).
#[inline(always)]
const fn after_doubt(state: u8, direction: Direction, flags: u8) -> u8 {
    const BY_CLIENT: u8 = State::ResetByClient as u8;
    const BY_ENDPOINT: u8 = State::ResetByEndpoint as u8;
    const SYN: u8 = State::ResetSyn as u8;
    const AGAIN: u8 = State::ResetSynAgain as u8;
    let syn = flags & tcp::SYN != 0;
    match (state, direction) {
        (BY_CLIENT | BY_ENDPOINT, Direction::Forward) if syn => SYN,
        (SYN | AGAIN, Direction::Reply) if syn => State::SynReceived as u8,
        _ if syn => state,
        (BY_CLIENT, Direction::Reply) | (BY_ENDPOINT, Direction::Forward) => state,
        _ if flags & tcp::FIN != 0 => after_fin(State::Established as u8, direction),
        _ => State::Established as u8,
    }
}

/// [`next`], and what depends on time: `age` is that of [`syn_selects_again`]. A SYN after a reset that is repeated after
/// a second or more is one that a live endpoint had to answer: it sends a challenge ACK at least every half second
/// (`tcp_invalid_ratelimit`, net/ipv4/tcp_input.c).
#[inline(always)]
pub const fn next_at(state: u8, direction: Direction, flags: u8, age: u32) -> u8 {
    let repeated = state == State::ResetSyn as u8 && flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN;
    match direction {
        Direction::Forward if repeated && age >= 1 => State::ResetSynAgain as u8,
        _ => next(state, direction, flags),
    }
}

/// True when the transition is the beginning of a wait for the endpoint, whose time counts from now.
#[inline(always)]
pub const fn begins_to_wait(old: u8, new: u8) -> bool {
    new == State::ResetSyn as u8 && old != new
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
/// No state of SCTP is: the flow cache does not know it.
#[inline(always)]
pub const fn is_settled(state: u8) -> bool {
    const ESTABLISHED: u8 = State::Established as u8;
    const CLOSE_CLIENT: u8 = State::CloseWaitClient as u8;
    const CLOSE_ENDPOINT: u8 = State::CloseWaitEndpoint as u8;
    const REPLIED: u8 = State::Replied as u8;
    matches!(state, ESTABLISHED | CLOSE_CLIENT | CLOSE_ENDPOINT | REPLIED)
}

/// Seconds without an answer after which a repeated SYN or INIT may choose another endpoint: three transmissions of
/// the first SYN (RFC 6298: after 1 and 3 seconds) went unanswered.
pub const UNANSWERED_SYN: u32 = 3;

/// True when a SYN or INIT on this entry starts a new connection: the old one is over, or this was never answered. `age` is
/// the time since the first packet, or since the state was entered where [`begins_to_wait`] says so.
#[inline(always)]
pub const fn syn_selects_again(state: u8, age: u32) -> bool {
    const SYN_SENT: u8 = State::SynSent as u8;
    const LAST_ACK: u8 = State::LastAck as u8;
    const TIME_WAIT: u8 = State::TimeWait as u8;
    const CLOSED: u8 = State::Closed as u8;
    const RESET_SYN_AGAIN: u8 = State::ResetSynAgain as u8;
    const COOKIE_WAIT: u8 = State::CookieWait as u8;
    const DISSOLVED: u8 = State::Dissolved as u8;
    matches!(state, LAST_ACK | TIME_WAIT | CLOSED | DISSOLVED)
        || (matches!(state, SYN_SENT | RESET_SYN_AGAIN | COOKIE_WAIT) && age >= UNANSWERED_SYN)
}

/// True when a SYN or INIT on this entry is the client's next attempt to get through: it starts a new connection as soon as
/// the endpoint does not serve any more.
#[inline(always)]
pub const fn syn_needs_endpoint(state: u8) -> bool {
    const SYN_SENT: u8 = State::SynSent as u8;
    const COOKIE_WAIT: u8 = State::CookieWait as u8;
    const ABORTED_BY_CLIENT: u8 = State::AbortedByClient as u8;
    const ABORTED_BY_ENDPOINT: u8 = State::AbortedByEndpoint as u8;
    matches!(state, SYN_SENT | COOKIE_WAIT | ABORTED_BY_CLIENT | ABORTED_BY_ENDPOINT) || is_reset(state)
}

/// True when a TCP or SCTP flow that has been silent for so many seconds is over, so that another one may take its source
/// port.
#[inline(always)]
pub const fn is_over(state: u8, silence: u32) -> bool {
    const TIME_WAIT: u8 = State::TimeWait as u8;
    const CLOSED: u8 = State::Closed as u8;
    const DISSOLVED: u8 = State::Dissolved as u8;
    matches!(state, TIME_WAIT | CLOSED | DISSOLVED) || (is_reset(state) && silence >= UNANSWERED_SYN)
}

/// Seconds from its first to its last packet after which an answered UDP flow is a stream rather than a question and its
/// answer (`nf_conntrack_udp_packet`, net/netfilter/nf_conntrack_proto_udp.c).
const STREAM: u32 = 2;

/// True when a flow may end to make room for another one: its ends have not agreed on it, or are done with it. `span` is
/// the time from its first to its last packet.
#[inline(always)]
pub const fn is_recyclable(state: u8, span: u32) -> bool {
    const FIN_CLIENT: u8 = State::FinWaitClient as u8;
    const FIN_ENDPOINT: u8 = State::FinWaitEndpoint as u8;
    const ASSOCIATED: u8 = State::Associated as u8;
    const SHUTDOWN_SENT: u8 = State::ShutdownSent as u8;
    const SHUTDOWN_RECEIVED: u8 = State::ShutdownReceived as u8;
    match state {
        FIN_CLIENT | FIN_ENDPOINT | ASSOCIATED | SHUTDOWN_SENT | SHUTDOWN_RECEIVED => false,
        _ if is_udp(state) => state != State::Replied as u8 || span < STREAM,
        _ => !is_settled(state),
    }
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
            // Longer than the 10 s of one that was reset for certain: the ends of a live flow may be silent for a while.
            State::ResetByClient | State::ResetByEndpoint | State::ResetSyn | State::ResetSynAgain => 120,
            State::SynReceived => 60,
            State::Established => self.established,
            State::CloseWaitClient | State::CloseWaitEndpoint => self.close_wait,
            State::LastAck => 30,
            State::Closed => 10,
            State::Unreplied => self.udp,
            State::Replied => self.udp_stream,
            State::CookieWait | State::CookieEchoed | State::ShutdownAckSent => 3,
            State::Associated => 210,
            State::ShutdownSent
            | State::ShutdownReceived
            | State::AbortedByClient
            | State::AbortedByEndpoint => sctp::UNPROVEN,
            State::Dissolved => 10,
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

    /// An established flow, and what comes after it.
    fn after(packets: &[(Direction, u8)]) -> State {
        let handshake = [(Reply, SYN | ACK), (Forward, ACK)];
        *run(&[&handshake, packets].concat()).last().unwrap()
    }

    #[test]
    fn a_reset_is_believed_until_its_sender_goes_on() {
        assert_eq!(after(&[(Forward, RST)]), State::ResetByClient);
        assert_eq!(after(&[(Forward, RST), (Reply, ACK)]), State::ResetByClient);
        assert_eq!(after(&[(Forward, RST), (Forward, ACK)]), State::Established);
        assert_eq!(after(&[(Reply, RST | ACK)]), State::ResetByEndpoint);
        assert_eq!(after(&[(Reply, RST | ACK), (Forward, ACK)]), State::ResetByEndpoint);
        assert_eq!(after(&[(Reply, RST | ACK), (Reply, ACK)]), State::Established);
        assert_eq!(after(&[(Reply, RST), (Reply, FIN | ACK)]), State::FinWaitEndpoint);
    }

    #[test]
    fn a_syn_after_a_reset_asks_the_endpoint() {
        let syn = after(&[(Reply, RST), (Forward, SYN)]);
        assert_eq!(syn, State::ResetSyn);
        assert!(begins_to_wait(State::ResetByEndpoint as u8, syn as u8));
        assert_eq!(after(&[(Reply, RST), (Forward, SYN), (Reply, SYN | ACK)]), State::SynReceived);
        assert_eq!(
            after(&[(Reply, RST), (Forward, SYN), (Reply, ACK)]),
            State::Established,
            "a challenge ACK"
        );
        assert_eq!(after(&[(Forward, RST), (Forward, SYN), (Reply, RST | ACK)]), State::ResetByEndpoint);
        for state in [State::ResetByClient, State::ResetByEndpoint, State::ResetSyn] {
            assert!(!syn_selects_again(state as u8, 1_000_000) && syn_needs_endpoint(state as u8));
        }
    }

    #[test]
    fn a_syn_after_a_reset_that_nobody_answers_chooses_again_at_its_third_transmission() {
        let first = State::ResetSyn as u8;
        assert_eq!(next_at(first, Forward, SYN, 0), first, "the endpoint may not answer so often");
        let second = next_at(first, Forward, SYN, 1);
        assert_eq!(second, State::ResetSynAgain as u8);
        assert!(!syn_selects_again(second, UNANSWERED_SYN - 1));
        assert!(syn_selects_again(second, UNANSWERED_SYN));
        assert_eq!(next(second, Reply, ACK), State::Established as u8);
    }

    #[test]
    fn a_port_is_not_taken_from_a_flow_that_may_be_alive() {
        for state in [State::ResetByClient, State::ResetByEndpoint, State::ResetSyn, State::ResetSynAgain] {
            assert!(!is_over(state as u8, 2) && is_over(state as u8, 3));
        }
        assert!(is_over(State::TimeWait as u8, 0) && is_over(State::Closed as u8, 0));
        assert!(!is_over(State::Established as u8, 1_000_000));
    }

    #[test]
    fn only_flows_that_nobody_agreed_on_or_that_are_over_make_room() {
        use State::*;
        let tcp = [SynSent, SynReceived, LastAck, TimeWait, Closed, ResetByClient, ResetByEndpoint, ResetSyn];
        assert!(tcp.into_iter().all(|state| is_recyclable(state as u8, 1_000)));
        let live = [Established, FinWaitClient, FinWaitEndpoint, CloseWaitClient, CloseWaitEndpoint]
            .map(|it| it as u8);
        assert!(!live.into_iter().any(|state| is_recyclable(state, 0)));
        assert!(is_recyclable(Unreplied as u8, 1_000) && is_recyclable(Replied as u8, 1));
        assert!(!is_recyclable(Replied as u8, 2));
        let live = [Associated, ShutdownSent, ShutdownReceived].map(|it| it as u8);
        assert!(!live.into_iter().any(|state| is_recyclable(state, 0)));
        let over = [CookieWait, CookieEchoed, ShutdownAckSent, Dissolved, AbortedByClient, AbortedByEndpoint];
        assert!(over.into_iter().all(|state| is_recyclable(state as u8, 1_000)));
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

    /// What happens to a flow within one second: packets of somebody who can forge one side's, and then a segment of each
    /// of the true ends, in either order.
    fn second() -> impl Strategy<Value = (Vec<u8>, bool)> {
        let forged =
            proptest::sample::select(&[RST, RST | ACK, SYN, SYN | ACK, FIN | ACK, FIN | RST, FIN][..]);
        (proptest::collection::vec(forged, 0..6), any::<bool>())
    }

    proptest! {
        /// Whatever one side's forged packets say: a flow whose ends go on is not over, and no SYN moves it.
        #[test]
        fn forged_packets_of_one_side_neither_move_nor_end_a_flow_that_goes_on(
            seconds in proptest::collection::vec(second(), 1..12), of_client: bool,
        ) {
            let direction = if of_client { Forward } else { Reply };
            let (mut state, mut since) = (State::Established as u8, 0);
            for (now, (forged, client_first)) in seconds.into_iter().enumerate() {
                let now = 1_000 + now as u32;
                for flags in forged {
                    if of_client && flags & (SYN | ACK) == SYN {
                        prop_assert!(!syn_selects_again(state, now - since), "a SYN moves {state}");
                    }
                    let old = state;
                    state = next_at(state, direction, flags, now - since);
                    if begins_to_wait(old, state) {
                        since = now;
                    }
                    prop_assert!(!is_over(state, 1), "{state} gives its port away");
                }
                for first in [true, false] {
                    state = next(state, if first == client_first { Forward } else { Reply }, ACK);
                }
                prop_assert!(is_settled(state), "{state} after both ends went on");
            }
        }

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
