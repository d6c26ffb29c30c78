//! Port unreachable, from a Service's address (S-21, S-23).

use std::net::IpAddr;

use lb_common::proto;
use lb_common::reason::Reason;

use super::bytes::sum;
use super::{Expected, Model, Part, Passage};
use crate::datapath::Verdict;
use crate::datapath::counters::Event;

/// What makes a sum over words a multiple of 0xffff: the checksum.
fn complement(sum: u64) -> [u8; 2] {
    ((0xffff - sum % 0xffff) as u16).to_be_bytes()
}

/// False for sources that are no machine's.
pub(super) fn may_be_answered(src: IpAddr) -> bool {
    match src {
        IpAddr::V4(src) => src.octets()[0] != 0 && src.octets()[0] < 224,
        IpAddr::V6(src) => !src.is_unspecified() && !src.is_multicast(),
    }
}

impl Model {
    /// Refuses a packet.
    pub(super) fn refuse(&mut self, passage: &Passage<'_>, reason: Reason) -> Expected {
        if !may_be_answered(passage.seen.src.ip()) {
            return self.drop(Reason::RefusalForbidden, None, passage.bytes);
        }
        if passage.seen.part == Part::Later {
            // The first one was answered.
            return self.drop(reason, None, passage.bytes);
        }
        self.events.push(Event::Reason(reason));
        let bytes = passage.bytes;
        let quoted = match passage.seen.protocol {
            proto::TCP => 20,
            // With the tag of an INIT, where one was promised.
            proto::SCTP if passage.seen.promised >= 20 => 20,
            proto::SCTP => 12,
            _ => 8,
        };
        let mut whole = bytes.to_vec();
        whole.resize(bytes.len().max(passage.seen.transport + quoted), 0);
        let quote = &whole[14..passage.seen.transport + quoted];
        let (from, to) = (passage.seen.dst.ip(), passage.seen.src.ip());
        let mut packet = [&bytes[6..12], &bytes[..6], &bytes[12..14]].concat();
        let sums = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let total = (20 + 8 + quote.len()) as u16;
                let mut header = vec![0x45, 0xc0];
                header.extend(total.to_be_bytes());
                header.extend([0, 0, 0x40, 0, 64, proto::ICMP, 0, 0]);
                header.extend(from.octets());
                header.extend(to.octets());
                let checksum = complement(sum(&header));
                header[10..12].copy_from_slice(&checksum);
                let mut icmp = vec![3, 3, 0, 0, 0, 0, 0, 0];
                icmp.extend(quote);
                let checksum = complement(sum(&icmp));
                icmp[2..4].copy_from_slice(&checksum);
                packet.extend(header);
                packet.extend(icmp);
                vec![24, 36]
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let payload = (8 + quote.len()) as u16;
                packet.extend([0x60, 0, 0, 0]);
                packet.extend(payload.to_be_bytes());
                packet.extend([proto::ICMPV6, 64]);
                packet.extend(from.octets());
                packet.extend(to.octets());
                let mut icmp = vec![1, 4, 0, 0, 0, 0, 0, 0];
                icmp.extend(quote);
                let pseudo =
                    sum(&from.octets()) + sum(&to.octets()) + u64::from(payload) + u64::from(proto::ICMPV6);
                let checksum = complement(pseudo + sum(&icmp));
                icmp[2..4].copy_from_slice(&checksum);
                packet.extend(icmp);
                vec![56]
            }
            mixed => panic!("two families: {mixed:?}"),
        };
        Expected { verdict: Verdict::Redirect, packet, sums }
    }
}
