//! The XDP program beside the programs of the stack: what it sends on is what they would have sent.

use anyhow::{Result, bail};
use lb_common::proto;
use lb_tests::datapath::wire::Device;
use lb_tests::datapath::{Datapath, Program, Verdict, packet};
use lb_tests::model;

use crate::run::MOST;

/// What the XDP program sends on of a packet that comes twice, which changes nothing but counters.
pub(crate) fn send(datapath: &Datapath, program: Program, packet: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut sent = Vec::new();
    if program != Program::FromNet || packet.len() > MOST || model::looks_uncompleted(packet) {
        return Ok(sent);
    }
    let mut frame = packet.to_vec();
    frame[..6].copy_from_slice(&Device::One.mac());
    for _ in 0..2 {
        let outcome = datapath.run(Program::FromWire, &frame)?;
        if outcome.verdict != Verdict::Pass {
            sent.push(outcome.packet);
        } else if outcome.packet != frame {
            bail!("XDP changed what it left to the stack:\n{frame:02x?}\n{:02x?}", outcome.packet);
        }
    }
    Ok(sent)
}

/// How what XDP sent differs from what a router makes of what left the programs of the stack; a sum may be written in two
/// ways.
pub(crate) fn difference(left: &[u8], sent: &[u8]) -> Option<String> {
    let mut expected = left.to_vec();
    expected[..12].copy_from_slice(&sent[..12]);
    let six = left[12..14] == [0x86, 0xdd];
    let (hops, transport) = if six { (21, 54) } else { (22, 34) };
    expected[hops] -= 1;
    if !six {
        let field = 24..26;
        let sum = u32::from(u16::from_be_bytes([left[24], left[25]])) + 0x100;
        let sum = (sum & 0xffff) + (sum >> 16);
        expected[field].copy_from_slice(&(sum as u16).to_be_bytes());
    }
    let protocol = left[if six { 20 } else { 23 }];
    let field = transport + if protocol == proto::TCP { 16 } else { 6 };
    let zero = |bytes: &[u8]| bytes == [0; 2] || bytes == [0xff; 2];
    for at in [24, field] {
        if (at == field || !six) && zero(&expected[at..at + 2]) && zero(&sent[at..at + 2]) {
            expected[at..at + 2].copy_from_slice(&sent[at..at + 2]);
        }
    }
    packet::difference(&expected, sent)
}
