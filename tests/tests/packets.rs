//! Packet tables: what the programs do with every kind of packet, run through `BPF_PROG_TEST_RUN`.

#[path = "packets/flows.rs"]
mod flows;
#[path = "packets/refusals.rs"]
mod refusals;
