//! What the XDP program does with packets: those of flows that stand come out as the programs of the stack together would
//! make them; all others stay as they are.

#[path = "wire/carried.rs"]
mod carried;
#[path = "wire/flows.rs"]
mod flows;
#[path = "wire/frames.rs"]
mod frames;
#[path = "wire/ways.rs"]
mod ways;
