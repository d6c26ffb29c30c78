//! Echo requests (S-70).

use lb_common::reason::Reason;

use super::bytes::{Message, correct, sum};
use super::refusal::may_be_answered;
use super::tables::{Address, Kind, Published};
use super::{Expected, Model};
use crate::datapath::{Program, Verdict};

impl Model {
    /// An echo request.
    pub(super) fn echo(&mut self, at: Program, packet: &[u8], message: &Message) -> Expected {
        let pass = Expected { verdict: Verdict::Pass, packet: packet.to_vec(), sums: Vec::new() };
        let comes_in = matches!(at, Program::FromPod | Program::FromNet);
        let odd = |model: &mut Self, reason| {
            if comes_in { model.odd(message.dst, reason, packet) } else { pass.clone() }
        };
        let (src, dst) = (message.src, message.dst);
        let plain = message.icmp == if src.is_ipv6() { 54 } else { 34 };
        let alive = self.tables.frontends.iter().any(|frontend| {
            let list = &self.tables.service(frontend.service).lists[0];
            frontend.kind == Kind::ClusterIp
                && frontend.vip.ip() == dst
                && matches!(list, Published::OneOf(_))
        });
        if at == Program::ToPod {
            return pass;
        }
        let answered = self.answers_echo && alive && plain && !message.is_fragment;
        if !answered || !may_be_answered(src) || src.is_loopback() {
            return odd(self, Reason::NotProxied);
        }
        if self.tables.whose(src) != Address::Foreign {
            return if comes_in { self.drop(Reason::SpoofedSource, None, packet) } else { pass };
        }
        if message.end < message.icmp + 8 || packet.len() < message.icmp + 8 {
            return odd(self, Reason::Malformed);
        }
        let mut answer = packet.to_vec();
        answer[..6].copy_from_slice(&packet[6..12]);
        answer[6..12].copy_from_slice(&packet[..6]);
        let mut sums = Vec::new();
        if src.is_ipv6() {
            answer[22..38].copy_from_slice(&packet[38..54]);
            answer[38..54].copy_from_slice(&packet[22..38]);
            answer[21] = 64;
        } else {
            answer[26..30].copy_from_slice(&packet[30..34]);
            answer[30..34].copy_from_slice(&packet[26..30]);
            answer[22] = 64;
            let after = sum(&answer[14..34]);
            correct(&mut answer, 24, after, sum(&packet[14..34]));
            sums.push(24);
        }
        answer[message.icmp] = if src.is_ipv6() { 129 } else { 0 };
        let after = sum(&answer[message.icmp..]);
        correct(&mut answer, message.icmp + 2, after, sum(&packet[message.icmp..]));
        sums.push(message.icmp + 2);
        Expected { verdict: Verdict::Redirect, packet: answer, sums }
    }
}
