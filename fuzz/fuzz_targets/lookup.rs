//! The lookup over tables of any contents: it ends, stays inside, and chooses only what was published.
#![no_main]

use lb_common::address::{Ip4, Ip6};
use lb_common::byteorder::Be16;
use lb_common::layout::{
    Class, Client, Family, FrontendKind, Policy, Publish, Row, Service, ServiceVerdict, V4, V6,
};
use lb_common::lookup::{self, Tables};
use lb_common::reason::Reason;
use lb_fuzz::Input;
use libfuzzer_sys::fuzz_target;

/// Rows of each table, a power of two.
const ROWS: u32 = 4;
/// Words of the longest row.
const WORDS: usize = 16;

#[derive(Clone, Copy)]
struct Words([u64; WORDS]);

impl Row for Words {
    fn word(&self, index: usize) -> u64 {
        self.0[index]
    }
}

/// Every table the same few rows: what one writes as a backend is a frontend to another.
struct Any([Words; ROWS as usize]);

impl Any {
    fn row(&self, index: u32) -> Option<Words> {
        self.0.get(index as usize).copied()
    }
}

impl Tables for Any {
    type Row = Words;

    fn frontend_mask4(&self) -> u32 {
        ROWS - 1
    }

    fn frontend_mask6(&self) -> u32 {
        ROWS - 1
    }

    fn control(&self, index: u32) -> Option<Words> {
        self.row(index)
    }

    fn frontends4(&self, bucket: u32) -> Option<Words> {
        assert!(bucket < ROWS, "beyond the mask");
        self.row(bucket)
    }

    fn frontends6(&self, bucket: u32) -> Option<Words> {
        assert!(bucket < ROWS, "beyond the mask");
        self.row(bucket)
    }

    fn service(&self, index: u32) -> Option<Words> {
        self.row(index)
    }

    fn slots(&self, word: u32) -> Option<Words> {
        self.row(word)
    }

    fn backends4(&self, index: u32) -> Option<Words> {
        self.row(index)
    }

    fn backends6(&self, index: u32) -> Option<Words> {
        self.row(index)
    }

    fn service_range(&self, index: u32) -> Option<Words> {
        self.row(index)
    }

    fn source_range(&self, index: u32) -> Option<Words> {
        self.row(index)
    }
}

fn check<F: Family>(tables: &Any, address: F::Addr, source: F::Addr, input: &mut Input<'_>) {
    let (port, protocol, random) = (Be16::from_raw(input.half()), input.byte(), input.word());
    let found = lookup::frontend::<F, _>(tables, address, port, protocol);
    let again = lookup::frontend::<F, _>(tables, address, port, protocol);
    assert_eq!(found, again);
    lookup::classify_address::<F, _>(tables, address);
    let Some(found) = found else { return };
    let policy = lookup::policy(tables, found.service);
    for client in [Client::Pod, Client::Outside, Client::Host] {
        let admitted = lookup::admits::<F, _>(tables, found, policy, client, source);
        let restricted =
            found.kind == FrontendKind::LoadBalancer && policy.flags & Policy::SOURCE_RANGES != 0;
        assert!(admitted || restricted, "nothing keeps {client:?} out");
        let class = Class::of(found.kind, client);
        let publish = tables.service(found.service).map(|row| Publish::decode(row.word(class as usize)));
        match lookup::choose::<F, _>(tables, found.service, class, |_| random) {
            Ok(choice) => {
                let publish = publish.expect("a row");
                assert!(publish.algorithm().is_some());
                assert_ne!(choice.index, 0, "row 0 is nobody's");
                assert!(choice.index < ROWS);
            }
            Err(Reason::NoEndpoint) => {
                assert_eq!(publish.expect("a row").verdict, ServiceVerdict::Reject as u8);
            }
            Err(Reason::NoLocalEndpoint) => {
                assert_eq!(publish.expect("a row").verdict, ServiceVerdict::Drop as u8);
            }
            Err(reason) => assert_eq!(reason, Reason::TableInconsistent),
        }
    }
    assert!(Service::WORDS <= WORDS);
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut tables = Any([Words([0; WORDS]); ROWS as usize]);
    let (four, six) = (Ip4::from_raw(input.word()), Ip6::from_raw(input.long(), input.long()));
    for row in &mut tables.0 {
        row.0.iter_mut().for_each(|word| *word = input.long());
    }
    let mut questions = Input(data.get(..64).unwrap_or(data));
    check::<V4>(&tables, four, four, &mut questions);
    check::<V6>(&tables, six, six, &mut questions);
});
