//! SCTP packets of any bytes: chunks are looked through without going astray, and the CRC that follows new ports is that of
//! the packet with new ports.
#![no_main]

use lb_common::proto::tcp;
use lb_common::{crc32c, sctp};
use lb_fuzz::{Input, Packet};
use libfuzzer_sys::fuzz_target;

/// CRC32c (RFC 9260 appendix A), bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (ports, transport, len) = (input.word(), usize::from(input.byte() % 32), input.half());
    let packet = Packet(input.rest().to_vec());
    let flags = sctp::flags(&packet, transport, usize::from(len));
    let says = flags & !sctp::LIVE;
    if says & tcp::RST != 0 {
        assert!(says == sctp::ABORT || says == sctp::SHUTDOWN_COMPLETE, "{flags:#04x}");
    }
    // What lies behind the end that the packet names is not looked at.
    let mut behind = packet.clone();
    behind.0.iter_mut().skip(transport + usize::from(len)).for_each(|byte| *byte = !*byte);
    assert_eq!(sctp::flags(&behind, transport, usize::from(len)), flags);

    let mut bytes = packet.0;
    if bytes.len() < 4 {
        return;
    }
    let (old, before) = (u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]), crc(&bytes));
    bytes[..4].copy_from_slice(&ports.to_le_bytes());
    let change = crc32c::difference(old ^ ports, bytes.len() as u16);
    assert_eq!(before ^ change, crc(&bytes));
});
