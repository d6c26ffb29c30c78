//! A sample of what goes into the programs and comes out of them, read by tshark: its dissectors find no packet malformed
//! and no checksum wrong.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lb_tests::datapath::sample::{VARIABLE, pcap};

/// Modules whose tables are sampled.
const TABLES: [&str; 8] =
    ["checksums::", "flows::", "frontends::", "headers::", "icmp::", "masquerade::", "refusals::", "sctp::"];

/// The checksums that tshark is to look at, each with the least number of right ones in the sample. Those of ICMP and ICMPv6
/// it always looks at.
const CHECKSUMS: [(&str, usize); 6] =
    [("ip", 100), ("tcp", 100), ("udp", 100), ("icmp", 10), ("icmpv6", 10), ("sctp", 10)];

/// What tshark says of the packets of a file: their number, and how often each checksum is what; a `1` is right, a `0` wrong.
/// Malformed ones are listed.
fn dissect(file: &Path) -> Result<(usize, BTreeMap<String, usize>, Vec<String>)> {
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(file).args(["-n", "-T", "fields", "-E", "separator=;", "-E", "occurrence=a"]);
    for preference in ["ip.check_checksum:TRUE", "tcp.check_checksum:TRUE", "udp.check_checksum:TRUE"] {
        tshark.args(["-o", preference]);
    }
    tshark.args(["-o", "sctp.checksum:CRC 32c"]);
    tshark.args(["-e", "frame.number", "-e", "_ws.malformed"]);
    for (name, _) in CHECKSUMS {
        tshark.args(["-e", &format!("{name}.checksum.status")]);
    }
    let output = tshark.output().context("run tshark (`cargo xtask setup` installs it)")?;
    ensure!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    let (mut packets, mut counts, mut malformed) = (0, BTreeMap::new(), Vec::new());
    for line in String::from_utf8(output.stdout)?.lines() {
        packets += 1;
        let fields: Vec<&str> = line.split(';').collect();
        ensure!(fields.len() == 2 + CHECKSUMS.len(), "tshark printed {line:?}");
        if !fields[1].is_empty() {
            malformed.push(line.to_owned());
        }
        // A quoted packet is measured by what is quoted of it, not by what it was: its sum says nothing.
        let is_error = !fields[5].is_empty() || !fields[6].is_empty();
        for ((name, _), field) in CHECKSUMS.iter().zip(&fields[2..]) {
            if is_error && matches!(*name, "tcp" | "sctp") {
                continue;
            }
            for status in field.split(',').filter(|status| !status.is_empty()) {
                *counts.entry(format!("{name} {status}")).or_default() += 1;
                if status == "0" {
                    malformed.push(format!("wrong checksum: {line}"));
                }
            }
        }
    }
    Ok((packets, counts, malformed))
}

/// The packets of a pcap file as this machine writes them.
fn packets(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut rest = &bytes[24..];
    while let Some(len) = rest.get(8..12) {
        let len = u32::from_ne_bytes(len.try_into().expect("four bytes")) as usize;
        packets.push(rest[16..16 + len].to_vec());
        rest = &rest[16 + len..];
    }
    packets
}

#[test]
fn tshark_finds_no_fault_with_a_sample_of_the_packet_tables() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("sample.pcap");
    // The tables themselves, in a process of their own that writes down what it sees.
    let mut tables = Command::new(std::env::current_exe()?);
    tables.args(TABLES).arg("--test-threads=1").env(VARIABLE, &file);
    let output = tables.output().context("run the packet tables")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));

    let (number, counts, faults) = dissect(&file)?;
    println!("{number} packets: {counts:?}");
    ensure!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    for (name, least) in CHECKSUMS {
        let right = counts.get(&format!("{name} 1")).copied().unwrap_or_default();
        ensure!(right >= least, "only {right} right checksums of {name}: {counts:?}");
    }

    // And it would: the same packets with a bit of their last byte turned are wrong, but for those without a transport.
    let sample = packets(&std::fs::read(&file)?);
    let damaged: Vec<Vec<u8>> = sample
        .into_iter()
        .map(|mut packet| {
            *packet.last_mut().expect("a packet") ^= 1;
            packet
        })
        .collect();
    std::fs::write(&file, pcap(&damaged))?;
    let (_, _, faults) = dissect(&file)?;
    ensure!(faults.len() * 10 > number * 9, "only {} of {number} damaged packets were noticed", faults.len());
    Ok(())
}
