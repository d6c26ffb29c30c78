//! Headers of any bytes: bounds hold, and what lies behind the headers changes nothing.
#![no_main]

use lb_common::address::Address;
use lb_common::headers::{self, Headers, MOST_EXTENSION_BYTES, Part, Unreadable};
use lb_fuzz::Packet;
use libfuzzer_sys::fuzz_target;

type Read<A> = Result<Headers<A>, Unreadable<A>>;

fn check<A: Address + std::fmt::Debug>(data: &[u8], start: usize, read: impl Fn(&Packet, usize) -> Read<A>) {
    let header = if A::V6 { 40 } else { 20 };
    let packet = Packet(data.to_vec());
    let found = match read(&packet, start) {
        Ok(found) => found,
        Err(Unreadable::Nothing) => {
            assert!(data.len() < start + header, "a whole header was there");
            return;
        }
        Err(Unreadable::Malformed(_) | Unreadable::Unknown(_)) => {
            assert!(data.len() >= start + header, "no whole header was there");
            return;
        }
    };
    let most = if A::V6 { header + MOST_EXTENSION_BYTES as usize } else { 60 };
    let transport = found.transport as usize;
    assert!((start + header..=start + most).contains(&transport), "{found:?}");
    if found.part == Part::Whole as u8 {
        assert_eq!(found.id, 0, "{found:?}");
    } else {
        assert!(found.part == Part::First as u8 || found.part == Part::Later as u8, "{found:?}");
    }
    if A::V6 {
        // Of what is behind them nothing is looked at, nor need it be there.
        let cut = Packet(data[..transport.min(data.len())].to_vec());
        assert_eq!(read(&cut, start), Ok(found));
    }
    let mut other = packet;
    other.0.iter_mut().skip(transport).for_each(|byte| *byte = !*byte);
    other.0.iter_mut().take(start).for_each(|byte| *byte = !*byte);
    assert_eq!(read(&other, start), Ok(found));
}

fuzz_target!(|data: &[u8]| {
    let Some((start, data)) = data.split_first() else { return };
    let start = usize::from(start % 64);
    check(data, start, headers::ipv4);
    check(data, start, headers::ipv6);
});
