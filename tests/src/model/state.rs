//! The life of a connection, as the two ends would tell it.

use lb_common::proto::tcp::{ACK, FIN, RST, SYN};
use lb_common::{proto, sctp};

/// State of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// TCP: begun.
    SynSent,
    /// TCP: the endpoint answered with a SYN.
    SynReceived,
    /// TCP: both talk.
    Established,
    /// TCP: the client said goodbye.
    FinWaitClient,
    /// TCP: the endpoint said goodbye.
    FinWaitEndpoint,
    /// TCP: the endpoint heard it, and may go on.
    CloseWaitClient,
    /// TCP: the client heard it, and may go on.
    CloseWaitEndpoint,
    /// TCP: both said goodbye.
    LastAck,
    /// TCP: both heard it.
    TimeWait,
    /// TCP: refused, or reset when both had said goodbye.
    Closed,
    /// TCP: someone said that the client resets it.
    ResetByClient,
    /// TCP: someone said that the endpoint resets it.
    ResetByEndpoint,
    /// TCP: the client asks the endpoint anew.
    ResetSyn,
    /// TCP: the client asks again.
    ResetSynAgain,
    /// SCTP: begun.
    CookieWait,
    /// SCTP: the client returned the cookie.
    CookieEchoed,
    /// SCTP: both talk.
    Associated,
    /// SCTP: the client says goodbye.
    ShutdownSent,
    /// SCTP: the endpoint says goodbye.
    ShutdownReceived,
    /// SCTP: the other one agrees.
    ShutdownAckSent,
    /// SCTP: over.
    Dissolved,
    /// SCTP: someone said that the client aborts it.
    AbortedByClient,
    /// SCTP: someone said that the endpoint aborts it.
    AbortedByEndpoint,
    /// UDP: begun.
    Unreplied,
    /// UDP: both talk.
    Replied,
}

use State::*;

/// Seconds after which a client that heard nothing may be led elsewhere.
const PATIENCE: u32 = 3;

impl State {
    /// The first state of a flow.
    pub fn first(protocol: u8) -> Self {
        match protocol {
            proto::TCP => SynSent,
            proto::SCTP => CookieWait,
            _ => Unreplied,
        }
    }

    fn is_sctp(self) -> bool {
        let doubtful = matches!(self, AbortedByClient | AbortedByEndpoint | Dissolved);
        let leaving = matches!(self, ShutdownSent | ShutdownReceived | ShutdownAckSent);
        doubtful || leaving || matches!(self, CookieWait | CookieEchoed | Associated)
    }

    /// What becomes of an association.
    fn associated(self, says: u8, by_client: bool) -> Self {
        let live = says & sctp::LIVE != 0;
        match (says & !sctp::LIVE, self, by_client) {
            // Aborted: nothing is lost before it stands; then it may be forged.
            (sctp::ABORT, CookieWait | CookieEchoed, _) => Dissolved,
            (sctp::ABORT, Associated | ShutdownSent | ShutdownReceived | ShutdownAckSent, true) => {
                AbortedByClient
            }
            (sctp::ABORT, Associated | ShutdownSent | ShutdownReceived | ShutdownAckSent, false) => {
                AbortedByEndpoint
            }
            (sctp::SHUTDOWN, Associated, true) => ShutdownSent,
            (sctp::SHUTDOWN, Associated, false) => ShutdownReceived,
            (sctp::SHUTDOWN_ACK, ShutdownSent, false) | (sctp::SHUTDOWN_ACK, ShutdownReceived, true) => {
                ShutdownAckSent
            }
            (sctp::SHUTDOWN_COMPLETE, ShutdownAckSent, _) => Dissolved,
            (sctp::COOKIE_ECHO, CookieWait, true) => CookieEchoed,
            (
                sctp::COOKIE_ACK,
                CookieWait | CookieEchoed | Dissolved | AbortedByClient | AbortedByEndpoint,
                false,
            ) => Associated,
            // Who goes on has not said goodbye.
            (0, CookieWait | CookieEchoed | AbortedByEndpoint, false) | (0, AbortedByClient, true) => {
                Associated
            }
            (0, ShutdownSent, true) | (0, ShutdownReceived, false) if live => Associated,
            (_, same, _) => same,
        }
    }

    /// True of UDP.
    pub fn is_udp(self) -> bool {
        matches!(self, Unreplied | Replied)
    }

    /// True after a reset that may have been forged.
    pub fn is_doubtful(self) -> bool {
        matches!(self, ResetByClient | ResetByEndpoint | ResetSyn | ResetSynAgain)
    }

    /// True when nobody uses the connection any more, silent for so many seconds, so that its port is free.
    pub fn is_over(self, silence: u32) -> bool {
        matches!(self, TimeWait | Closed | Dissolved) || (self.is_doubtful() && silence >= PATIENCE)
    }

    /// True when a segment with these flags is the first of a new connection, where one `age` seconds old was.
    pub fn gives_way(self, flags: u8, age: u32) -> bool {
        let free = matches!(self, LastAck | TimeWait | Closed | Dissolved)
            || (matches!(self, SynSent | ResetSynAgain | CookieWait) && age >= PATIENCE);
        is_question(flags) && free
    }

    /// True when a segment with these flags is one that an endpoint must be there for.
    pub fn wants_endpoint(self, flags: u8) -> bool {
        let doubtful = self.is_doubtful() || matches!(self, AbortedByClient | AbortedByEndpoint);
        is_question(flags) && (matches!(self, SynSent | CookieWait) || doubtful)
    }

    /// What becomes of it by a packet of the client, or of the endpoint, `age` seconds after it began.
    #[must_use]
    pub fn after(self, flags: u8, by_client: bool, age: u32) -> Self {
        if self.is_udp() {
            return if by_client { self } else { Replied };
        }
        if self.is_sctp() {
            return self.associated(flags, by_client);
        }
        if self == ResetSyn && by_client && is_question(flags) && flags & RST == 0 && age >= 1 {
            // A live endpoint had answered the first time.
            return ResetSynAgain;
        }
        if flags & RST != 0 {
            return match (self, by_client) {
                (SynSent | LastAck | TimeWait | Closed, _) => Closed,
                (_, true) => ResetByClient,
                (_, false) => ResetByEndpoint,
            };
        }
        if self.is_doubtful() {
            return self.after_doubt(flags, by_client);
        }
        self.in_order(flags, by_client)
    }

    /// After a reset: who goes on has not sent it.
    fn after_doubt(self, flags: u8, by_client: bool) -> Self {
        let syn = flags & SYN != 0;
        let believed = match self {
            ResetByClient => !by_client,
            ResetByEndpoint => by_client,
            _ => false,
        };
        match (self, by_client) {
            (ResetByClient | ResetByEndpoint, true) if syn => ResetSyn,
            (ResetSyn | ResetSynAgain, false) if syn => SynReceived,
            _ if syn || believed => self,
            // Alive, and of what it says only a goodbye counts.
            _ if flags & FIN != 0 => Established.in_order(flags, by_client),
            _ => Established,
        }
    }

    fn in_order(self, flags: u8, by_client: bool) -> Self {
        let syn = flags & SYN != 0;
        if flags & FIN != 0 {
            return match (self, by_client) {
                (SynSent | SynReceived | Established, true) => FinWaitClient,
                (SynSent | SynReceived | Established, false) => FinWaitEndpoint,
                (FinWaitClient | CloseWaitClient, false) | (FinWaitEndpoint | CloseWaitEndpoint, true) => {
                    LastAck
                }
                (other, _) => other,
            };
        }
        match (self, by_client) {
            (SynSent, false) if syn => SynReceived,
            (SynSent, false) => Established,
            (SynReceived, true) if !syn => Established,
            (FinWaitClient, false) => CloseWaitClient,
            (FinWaitEndpoint, true) => CloseWaitEndpoint,
            (LastAck, _) if !syn => TimeWait,
            (other, _) => other,
        }
    }
}

/// True for the flags of a client that wants a connection.
pub(super) fn is_question(flags: u8) -> bool {
    flags & SYN != 0 && flags & ACK == 0
}
