//! Fair shares of a connection table that is nearly full: who has much of it begins flows in the place of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use lb_common::layout::{Forwarding, ServiceStat, ServiceVerdict};
use lb_common::proto::{self, tcp::ACK, tcp::SYN};
use lb_common::reason::Reason;
use lb_tests::datapath::counters::Counts;
use lb_tests::datapath::entries::Ends;
use lb_tests::datapath::packet::Packet;
use lb_tests::datapath::{BackendSpec, CONNECTIONS, Datapath, Program, RECENT, Verdict, pin};

/// A Service whose flows all begin at one client.
#[derive(Clone, Copy)]
struct Target {
    protocol: u8,
    service: u32,
    client: IpAddr,
    vip: SocketAddr,
    endpoint: SocketAddr,
}

impl Target {
    fn new(datapath: &mut Datapath, v6: bool, protocol: u8) -> Result<Self> {
        let number = datapath.subnet();
        let host = |host: u16| -> IpAddr {
            if v6 {
                Ipv6Addr::new(0xfd00, number.into(), 0, 0, 0, 0, 0, host).into()
            } else {
                Ipv4Addr::new(10, number, 0, host as u8).into()
            }
        };
        let (vip, endpoint) = (SocketAddr::new(host(1), 80), SocketAddr::new(host(2), 8080));
        let backend = BackendSpec::serving(endpoint);
        let service = datapath.service(vip, protocol, ServiceVerdict::Random, &[backend])?;
        Ok(Self { protocol, service, client: host(3), vip, endpoint })
    }

    fn client(&self, number: u32) -> SocketAddr {
        SocketAddr::new(self.client, 1_024 + number as u16)
    }

    fn key(&self, number: u32) -> Ends {
        Ends { src: self.client(number), dst: self.vip, protocol: self.protocol }
    }

    fn reply_key(&self, number: u32) -> Ends {
        Ends { src: self.endpoint, dst: self.client(number), protocol: self.protocol }
    }

    /// The client's first packet of a flow.
    fn opens(&self, datapath: &Datapath, number: u32) -> Result<Verdict> {
        let packet = Packet::new(self.protocol, self.client(number), self.vip, SYN);
        Ok(datapath.run(Program::FromPod, &packet.bytes())?.verdict)
    }

    /// The rest of a TCP handshake, or the answer to a datagram.
    fn agrees(&self, datapath: &Datapath, number: u32) -> Result<()> {
        let answer = Packet::new(self.protocol, self.endpoint, self.client(number), SYN | ACK);
        datapath.run(Program::ToPod, &answer.bytes())?;
        if self.protocol == proto::TCP {
            let packet = Packet::new(self.protocol, self.client(number), self.vip, ACK);
            datapath.run(Program::FromPod, &packet.bytes())?;
        }
        Ok(())
    }

    fn lives(&self, datapath: &mut Datapath, number: u32) -> Result<bool> {
        let (there, back) = (datapath.entry(&self.key(number))?, datapath.entry(&self.reply_key(number))?);
        assert_eq!(there.is_some(), back.is_some(), "half of flow {number}");
        Ok(there.is_some())
    }

    /// What the Service has of the table, and what all have.
    fn fills(&self, datapath: &mut Datapath, own: u32, total: u32) -> Result<()> {
        datapath.set_shares(0, [total.into(); 2])?;
        datapath.set_shares(self.service, [own.into(); 2])
    }
}

fn count(counts: &Counts, service: u32, stat: ServiceStat) -> u64 {
    counts.get(&format!("service {service} {stat:?}")).copied().unwrap_or_default()
}

/// More than three quarters of the table, and more than an eighth of it.
const NEARLY_FULL: u32 = CONNECTIONS / 4 * 3 + 1;
const MUCH: u32 = CONNECTIONS / 8 + 1;

fn each(case: impl Fn(&mut Datapath, Target) -> Result<()>) {
    pin();
    let mut datapath = Datapath::load(Forwarding::Stack).expect("the programs load");
    for (v6, protocol) in [(false, proto::TCP), (true, proto::TCP), (false, proto::UDP), (true, proto::UDP)] {
        let target = Target::new(&mut datapath, v6, protocol).expect("room");
        datapath.counted(0, 5).expect("a store");
        case(&mut datapath, target)
            .unwrap_or_else(|error| panic!("IPv6 {v6}, protocol {protocol}: {error:?}"));
    }
}

#[test]
fn entries_are_counted_when_they_come_and_when_they_go() {
    each(|datapath, target| {
        let family = usize::from(target.client.is_ipv6());
        let before = datapath.shares(0)?[family];
        for number in 0..10 {
            target.opens(datapath, number)?;
            target.opens(datapath, number)?;
        }
        assert_eq!(datapath.shares(target.service)?[family], 20);
        assert_eq!(datapath.shares(target.service)?[1 - family], 0);
        assert_eq!(datapath.shares(0)?[family], before + 20);
        // One that chooses again goes and comes.
        let key = target.key(3);
        datapath.age(&key, 10)?;
        target.opens(datapath, 3)?;
        assert_eq!(datapath.shares(target.service)?[family], 20);
        assert_eq!(datapath.shares(0)?[family], before + 20);
        Ok(())
    });
}

#[test]
fn a_flood_overwrites_its_own_flows_and_no_agreed_one() {
    each(|datapath, target| {
        // Live flows of before, and of a Service that shares the ring.
        let mut other = Target::new(datapath, target.client.is_ipv6(), target.protocol)?;
        while other.service % 16 != target.service % 16 {
            other = Target::new(datapath, target.client.is_ipv6(), target.protocol)?;
        }
        for number in 50_000..50_010 {
            target.opens(datapath, number)?;
        }
        target.fills(datapath, MUCH, NEARLY_FULL)?;
        let before = datapath.counters(target.service, 1)?;
        // Two of the other Service's, into the same ring: for them the table is full.
        other.fills(datapath, MUCH, NEARLY_FULL)?;
        target.fills(datapath, MUCH, NEARLY_FULL)?;
        other.opens(datapath, 0)?;
        other.opens(datapath, 1)?;
        let flows = RECENT - 2;
        for number in 0..flows {
            assert_eq!(target.opens(datapath, number)?, Verdict::Pass, "{number}");
        }
        let counts = datapath.counters(target.service, 1)?.since(&before);
        assert_eq!(count(&counts, target.service, ServiceStat::Recycled), 0, "places are left");
        for agreed in [1, 2, 5] {
            target.agrees(datapath, agreed)?;
        }
        if target.protocol == proto::UDP {
            // A stream goes on for two seconds at least.
            for agreed in [1, 2, 5] {
                datapath.lengthen(&target.key(agreed), 2)?;
            }
        }
        let filled = datapath.shares(target.service)?;
        for number in flows..flows + 20 {
            assert_eq!(target.opens(datapath, number)?, Verdict::Pass, "{number}");
            assert!(target.lives(datapath, number)?, "{number}");
        }
        assert_eq!(datapath.shares(target.service)?, filled, "no more than before");
        let counts = datapath.counters(target.service, 1)?.since(&before);
        assert_eq!(count(&counts, target.service, ServiceStat::Recycled), 20);
        assert!(other.lives(datapath, 0)? && other.lives(datapath, 1)?, "another Service's");
        let gone: Vec<u32> = (0..23).filter(|number| ![1, 2, 5].contains(number)).collect();
        for number in 0..flows + 20 {
            assert_eq!(target.lives(datapath, number)?, !gone.contains(&number), "{number}");
        }
        for number in 50_000..50_010 {
            assert!(target.lives(datapath, number)?, "one of before");
        }
        Ok(())
    });
}

#[test]
fn who_has_more_than_its_part_and_nothing_to_give_up_does_not_grow() {
    each(|datapath, target| {
        // More than a fifth.
        target.fills(datapath, CONNECTIONS / 5 + 1, NEARLY_FULL)?;
        for number in 0..RECENT {
            target.opens(datapath, number)?;
            target.agrees(datapath, number)?;
            if target.protocol == proto::UDP {
                datapath.lengthen(&target.key(number), 2)?;
            }
        }
        let before = datapath.counters(target.service, 1)?;
        assert_eq!(target.opens(datapath, 60_000)?, Verdict::Drop);
        let counts = datapath.counters(target.service, 1)?.since(&before);
        assert_eq!(counts.get(Reason::ConnectionTableFull.name()), Some(&1));
        assert_eq!(count(&counts, target.service, ServiceStat::Dropped), 1);
        // Two Services have a half each before they are bound.
        datapath.counted(0, 2)?;
        assert_eq!(target.opens(datapath, 60_000)?, Verdict::Pass);
        datapath.counted(0, 5)?;
        // And everybody is free once nobody counts any more.
        assert_eq!(target.opens(datapath, 60_001)?, Verdict::Drop);
        datapath.counted(61, 5)?;
        assert_eq!(target.opens(datapath, 60_001)?, Verdict::Pass);
        for number in 0..RECENT {
            assert!(target.lives(datapath, number)?, "{number}");
        }
        Ok(())
    });
}

#[test]
fn who_has_little_is_free_while_others_fill_the_table() {
    each(|datapath, target| {
        target.fills(datapath, MUCH - 1_000, NEARLY_FULL)?;
        let before = datapath.counters(target.service, 1)?;
        for number in 0..400 {
            assert_eq!(target.opens(datapath, number)?, Verdict::Pass);
        }
        let counts = datapath.counters(target.service, 1)?.since(&before);
        assert_eq!(count(&counts, target.service, ServiceStat::Recycled), 0);
        for number in 0..400 {
            assert!(target.lives(datapath, number)?);
        }
        Ok(())
    });
}
