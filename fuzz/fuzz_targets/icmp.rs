//! ICMP errors of any bytes: a translation changes addresses, ports and checksums alone, leaves every checksum as right as it
//! was, and is undone by its opposite.
#![no_main]

use lb_common::address::{Ip4, Ip6};
use lb_common::byteorder::Be16;
use lb_common::icmp::{self, Ip, Quote};
use lb_common::proto;
use lb_common::tuple::{Rewrite, Tuple};
use lb_fuzz::{Input, Packet, sum};
use libfuzzer_sys::fuzz_target;

/// What the ICMP checksum is over, checksum and all: 0 when it is right.
fn remainder(packet: &Packet, ip: usize, icmp: usize, v6: bool) -> u64 {
    let pseudo = if v6 { sum(&packet.0[ip + 8..ip + 40]) } else { 0 };
    (pseudo + sum(&packet.0[icmp..])) % 0xffff
}

fn check<A: Ip + std::fmt::Debug>(data: &[u8], src: A, dst: A, ports: [u16; 2]) {
    const START: usize = 0;
    let before = Packet(data.to_vec());
    let Ok(error) = A::read(&before, START) else { return };
    let Some(quote) = Quote::of(&before, &error) else { return };
    assert!(quote.start > error.transport && quote.headers.transport + 8 <= quote.end, "{quote:?}");
    let key = quote.turned();
    let [src_port, dst_port] = ports.map(Be16::from_raw);
    let rewrite = Rewrite::new(&key, src, dst, src_port, dst_port);
    let mut after = before.clone();
    assert_eq!(icmp::translate(&mut after, START, &error, &quote, &rewrite), Some(()), "all was readable");
    assert_eq!(after.0.len(), before.0.len());

    let (ip, message) = (quote.start as usize, error.transport as usize);
    let addresses = |ip: usize| if A::V6 { ip + 8..ip + 40 } else { ip + 10..ip + 20 };
    let transport = quote.headers.transport as usize;
    let field = match quote.headers.protocol {
        proto::TCP => transport + 16..transport + 18,
        proto::UDP => transport + 6..transport + 8,
        _ => transport + 8..transport + 12,
    };
    for at in 0..before.0.len() {
        let may = addresses(START).contains(&at)
            || addresses(ip).contains(&at)
            || (message + 2..message + 4).contains(&at)
            || (transport..transport + 4).contains(&at)
            || field.contains(&at);
        assert!(may || before.0[at] == after.0[at], "byte {at} changed");
    }
    assert_eq!(
        remainder(&after, START, message, A::V6),
        remainder(&before, START, message, A::V6),
        "the ICMP checksum"
    );
    if !A::V6 {
        for ip in [START, ip] {
            let header = |packet: &Packet| {
                let end = ip + usize::from(packet.0[ip] & 15) * 4;
                sum(&packet.0[ip..end.min(packet.0.len())])
            };
            assert_eq!(header(&after), header(&before), "the header checksum at {ip}");
        }
    }
    // What it has become is an error about the other flow's packet, for that one's sender.
    let error = A::read(&after, START).expect("as readable as before");
    let quote = Quote::of(&after, &error).expect("quotes as before");
    assert_eq!(quote.turned(), Tuple::new(src, dst, src_port, dst_port, key.protocol));
    // And back.
    let back = Rewrite::new(&quote.turned(), key.src, key.dst, key.src_port, key.dst_port);
    assert_eq!(icmp::translate(&mut after, START, &error, &quote, &back), Some(()));
    let error = A::read(&after, START).expect("as readable as before");
    let quote = Quote::of(&after, &error).expect("quotes as before");
    assert_eq!(quote.turned(), key);
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let ports = [input.half(), input.half()];
    let (four, six) =
        ([input.word(), input.word()], [input.long(), input.long(), input.long(), input.long()]);
    let rest = input.rest();
    check(rest, Ip4::from_raw(four[0]), Ip4::from_raw(four[1]), ports);
    check(rest, Ip6::from_raw(six[0], six[1]), Ip6::from_raw(six[2], six[3]), ports);
});
