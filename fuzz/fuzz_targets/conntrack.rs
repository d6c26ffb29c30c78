//! Connection states under any sequence of packets: known ones only, at rest where the flow cache answers, and no reset or SYN
//! of one side ends or moves a flow on which both sides go on.
#![no_main]

use lb_common::conntrack::{self, Direction, State, Timeouts};
use lb_common::proto::tcp::{ACK, FIN, RST, SYN};
use lb_common::proto::{TCP, UDP};
use lb_fuzz::Input;
use libfuzzer_sys::fuzz_target;

fn any_sequence(mut input: Input<'_>, protocol: u8) {
    let (mut state, mut since, mut now) = (State::initial(protocol) as u8, 0_u32, 0_u32);
    while !input.is_empty() {
        let [how, flags] = input.take();
        let direction = if how & 1 == 0 { Direction::Forward } else { Direction::Reply };
        now += u32::from(how >> 4);
        let old = state;
        state = conntrack::next_at(old, direction, flags, now - since);
        let known = State::from_number(state).expect("a known state");
        assert!(Timeouts::DEFAULT.of(known) > 0);
        assert_eq!(conntrack::is_udp(state), protocol == UDP, "{known:?}");
        if conntrack::is_settled(old) && (protocol == UDP || flags & (SYN | FIN | RST) == 0) {
            assert_eq!(old, state, "settled, and moved by flags {flags:02x}");
        }
        if conntrack::begins_to_wait(old, state) {
            since = now;
        }
    }
}

/// Seconds of forged packets of one side, each second with a segment of both true ends.
fn forged(mut input: Input<'_>) {
    let of = if input.byte() & 1 == 0 { Direction::Forward } else { Direction::Reply };
    let (mut state, mut since) = (State::Established as u8, 0_u32);
    for now in 0.. {
        if input.is_empty() {
            return;
        }
        for _ in 0..input.byte() % 8 {
            let flags = input.byte();
            if of == Direction::Forward && flags & (SYN | ACK) == SYN {
                assert!(!conntrack::syn_selects_again(state, now - since), "a SYN moves {state}");
            }
            // A goodbye of both sides is one.
            let flags = if flags & RST == 0 { flags & !FIN } else { flags };
            let old = state;
            state = conntrack::next_at(old, of, flags, now - since);
            if conntrack::begins_to_wait(old, state) {
                since = now;
            }
            assert!(!conntrack::is_over(state, 1), "{state} gives its port away");
        }
        state = conntrack::next(state, Direction::Forward, ACK);
        state = conntrack::next(state, Direction::Reply, ACK);
        assert!(conntrack::is_settled(state), "{state} after both ends went on");
    }
}

fuzz_target!(|data: &[u8]| {
    any_sequence(Input(data), TCP);
    any_sequence(Input(data), UDP);
    forged(Input(data));
});
