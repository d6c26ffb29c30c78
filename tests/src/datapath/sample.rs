//! A sample of the packets of the packet tables, for other eyes than ours.
//!
//! Where [`VARIABLE`] names a file, the packets of the first step of each name, hook, family and protocol are written there, as
//! pcap: what went in and what came out, when both have complete checksums.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::sync::{Mutex, OnceLock};

use anyhow::{Context as _, Result};

use super::packet;

/// The environment variable that names the file.
pub const VARIABLE: &str = "LB_PACKET_SAMPLE";

/// Header of a pcap file (draft-ietf-opsawg-pcap): magic number, version 2.4, no time zone, longest packet, Ethernet.
const HEADER: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1];

struct Sample {
    file: File,
    seen: BTreeSet<String>,
}

static SAMPLE: OnceLock<Option<Mutex<Sample>>> = OnceLock::new();

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A pcap file with these packets in it.
pub fn pcap(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = words(&HEADER);
    packets.iter().for_each(|packet| bytes.extend(record(packet)));
    bytes
}

fn record(packet: &[u8]) -> Vec<u8> {
    // Time stamps of 0; the lengths of what is here and of what was there.
    let len = packet.len() as u32;
    [&words(&[0, 0, len, len]), packet].concat()
}

fn open() -> Option<Mutex<Sample>> {
    let name = std::env::var_os(VARIABLE)?;
    let mut file = File::create(&name).unwrap_or_else(|error| panic!("create {}: {error}", name.display()));
    file.write_all(&pcap(&[])).expect("the file can be written");
    Some(Mutex::new(Sample { file, seen: BTreeSet::new() }))
}

/// Notes a packet and what became of it.
pub(super) fn note(of: impl FnOnce() -> String, before: &[u8], after: &[u8]) -> Result<()> {
    let Some(sample) = SAMPLE.get_or_init(open) else { return Ok(()) };
    let mut sample = sample.lock().expect("no panic while locked");
    if packet::verify(before).is_err() || !sample.seen.insert(of()) {
        return Ok(());
    }
    for packet in [before, after] {
        sample.file.write_all(&record(packet)).context("write the sample")?;
    }
    Ok(())
}
