//! Packet tables: what the programs do with every kind of packet, run through `BPF_PROG_TEST_RUN`.

#[path = "packets/affinity.rs"]
mod affinity;
#[path = "packets/checksums.rs"]
mod checksums;
#[path = "packets/direct.rs"]
mod direct;
#[path = "packets/dissect.rs"]
mod dissect;
#[path = "packets/echo.rs"]
mod echo;
#[path = "packets/exhaustion.rs"]
mod exhaustion;
#[path = "packets/flows.rs"]
mod flows;
#[path = "packets/foreign.rs"]
mod foreign;
#[path = "packets/fragments.rs"]
mod fragments;
#[path = "packets/frontends.rs"]
mod frontends;
#[path = "packets/headers.rs"]
mod headers;
#[path = "packets/held.rs"]
mod held;
#[path = "packets/hostile.rs"]
mod hostile;
#[path = "packets/icmp.rs"]
mod icmp;
#[path = "packets/maglev.rs"]
mod maglev;
#[path = "packets/masquerade.rs"]
mod masquerade;
#[path = "packets/race.rs"]
mod race;
#[path = "packets/random.rs"]
mod random;
#[path = "packets/ranges.rs"]
mod ranges;
#[path = "packets/refusals.rs"]
mod refusals;
#[path = "packets/sctp.rs"]
mod sctp;
#[path = "packets/selection.rs"]
mod selection;
#[path = "packets/shares.rs"]
mod shares;
