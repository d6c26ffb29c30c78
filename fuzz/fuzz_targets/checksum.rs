//! Checksums updated by what changed are those of the changed packet.
#![no_main]

use lb_common::address::{Address, Ip4, Ip6};
use lb_common::byteorder::Be16;
use lb_common::checksum::{self, Sum};
use lb_common::tuple::{Rewrite, Tuple};
use lb_fuzz::{Input, sum};
use libfuzzer_sys::fuzz_target;

fn same(a: u64, b: u64) -> bool {
    a % 0xffff == b % 0xffff
}

/// Sum of a flow's ends in a packet.
fn ends<A: Address>(src: A, dst: A, ports: [u16; 2]) -> (u64, u64) {
    let addresses = u64::from(dst.add_to(src.add_to(Sum::new())).fold());
    (addresses, addresses + u64::from(ports[0]) + u64::from(ports[1]))
}

fn check<A: Address>(old: [A; 2], new: [A; 2], ports: [u16; 4], payload: &[u8]) {
    let [a, b, c, d] = ports;
    let [src_port, dst_port, new_src_port, new_dst_port] = ports.map(Be16::from_raw);
    let key = Tuple::new(old[0], old[1], src_port, dst_port, 6);
    let rewrite = Rewrite::new(&key, new[0], new[1], new_src_port, new_dst_port);
    let (addresses_before, all_before) = ends(old[0], old[1], [a, b]);
    let (addresses_after, all_after) = ends(new[0], new[1], [c, d]);
    // Complete: the field makes the sum over everything 0.
    let rest = sum(payload);
    let field = !Sum::new().add_u64(all_before).add_u64(rest).fold();
    let updated = u64::from(checksum::update(field, rewrite.full_difference));
    assert!(same(all_after + rest + updated, 0), "complete: {field:04x} became {updated:04x}");
    // Not completed yet: the field is the sum of the pseudo header.
    let field = Sum::new().add_u64(addresses_before).fold();
    let updated = u64::from(checksum::update_partial(field, rewrite.address_difference));
    assert!(same(updated, addresses_after), "partial: {field:04x} became {updated:04x}");
    // There and back.
    let reply = Rewrite::new(&rewrite.reply(6), old[1], old[0], dst_port, src_port);
    let both = u64::from(rewrite.full_difference) + u64::from(reply.full_difference);
    assert!(same(both, 0), "the way back makes up for the way there");
    assert!(reply.reply(6) == key);
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let ports = [input.half(), input.half(), input.half(), input.half()];
    let four: [Ip4; 4] = std::array::from_fn(|_| Ip4::from_raw(input.word()));
    let six: [Ip6; 4] = std::array::from_fn(|_| Ip6::from_raw(input.long(), input.long()));
    let payload = input.rest();
    check([four[0], four[1]], [four[2], four[3]], ports, payload);
    check([six[0], six[1]], [six[2], six[3]], ports, payload);
    // Sums do not depend on how they are added up.
    let words = payload
        .chunks_exact(2)
        .fold(Sum::new(), |sum, word| sum.add_u16(u16::from_ne_bytes([word[0], word[1]])));
    let longs = payload
        .chunks_exact(8)
        .fold(Sum::new(), |sum, word| sum.add_u64(u64::from_ne_bytes(word.try_into().expect("eight bytes"))));
    assert!(same(words.fold().into(), sum(&payload[..payload.len() & !1])));
    assert!(same(longs.fold().into(), sum(&payload[..payload.len() & !7])));
});
