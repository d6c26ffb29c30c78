//! Random plans: Services, and what happens to them. Small numbers of everything, so that flows meet.

use lb_tests::model::Kind;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

/// Endpoints: pods of this node, then hosts beyond the network.
pub(crate) const ENDPOINTS: u8 = 6;
/// Of these are pods of this node.
pub(crate) const PODS: u8 = 4;

/// A sequence.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// IPv6.
    pub v6: bool,
    /// The node has an address to masquerade with.
    pub(crate) masquerades: bool,
    /// Services.
    pub(crate) services: Vec<ServicePlan>,
    /// Who talks to whom.
    pub(crate) conversations: Vec<Conversation>,
    /// What happens.
    pub(crate) steps: Vec<Step>,
}

/// A Service.
#[derive(Clone, Debug)]
pub(crate) struct ServicePlan {
    /// IP protocol number.
    pub(crate) protocol: u8,
    /// Frontends.
    pub(crate) kinds: Vec<Kind>,
    /// Has an affinity.
    pub(crate) affinity: bool,
    /// Clients outside keep their addresses.
    pub(crate) preserve_source: bool,
    /// Only some sources may use its VIP.
    pub(crate) sources: bool,
    /// Its lists.
    pub(crate) lists: Lists,
}

/// Lists of endpoints, a bit each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lists {
    /// By class: internal, external, cluster.
    pub(crate) listed: [u8; 3],
    /// Serving, whether listed or not.
    pub(crate) serving: u8,
    /// An empty list drops; otherwise it refuses.
    pub(crate) drops: bool,
}

/// A client and a Service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conversation {
    /// Client: numbered as endpoints are.
    pub(crate) client: u8,
    /// Its port, of a few.
    pub(crate) port: u8,
    /// Service, modulo those there are.
    pub(crate) service: u8,
    /// Frontend of the Service, modulo those there are.
    pub(crate) frontend: u8,
}

/// Who a packet is from or to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// A pod or a host beyond the network.
    Host(u8),
    /// The VIP of a Service's frontend.
    Vip(u8, u8),
    /// The node.
    Node,
    /// An address of the Service range that no Service has.
    Unallocated,
    /// Someone else.
    Foreign,
    /// An address that a group has.
    Multicast,
    /// No address.
    Unspecified,
    /// This host.
    Loopback,
}

/// What a packet looks like.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// TCP flags.
    pub(crate) flags: u8,
    /// Bytes of payload.
    pub(crate) payload: u8,
    /// Words of IPv4 options.
    pub(crate) options: u8,
    /// IPv6 extension headers: number, length in units of eight bytes beyond the first, fourth byte.
    pub(crate) extensions: Vec<(u8, u8, u8)>,
    /// A fragment of the datagram with that identification: a later one, or the first.
    pub(crate) fragment: Option<(bool, u8)>,
    /// A datagram without checksum.
    pub(crate) no_checksum: bool,
    /// What is done to the bytes.
    pub(crate) damage: Option<Damage>,
}

/// What is done to a packet's bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Damage {
    /// A byte of the headers becomes another.
    Byte(u8, u8),
    /// The end is cut off.
    Cut(u8),
    /// The last byte changes, the checksum does not.
    Payload,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A packet of a conversation, all its way; by the endpoint's side if `answer`. Its flags are those of the shape, unless
    /// it does `in_order` what TCP does.
    Talk { conversation: u8, answer: bool, in_order: bool, shape: Shape },
    /// A packet of a conversation's client, from the same port, to the endpoint itself that the last one went to, all its
    /// way; by the endpoint if `answer`. Often one that begins something.
    Past { conversation: u8, answer: bool, first: bool, shape: Shape },
    /// Any packet at any hook: number of the program, ends, a choice of ports, protocol.
    Wild { program: u8, src: Who, dst: Who, ports: (u8, u8), protocol: u8, shape: Shape },
    /// Somebody complains about a packet, counted back from the last one: its receiver or a router, which lies on the side of
    /// the pods or not; with so many bytes of it, or all.
    Complain { about: u8, router: Option<bool>, code: u8, quoted: Option<u8>, shape: Shape },
    /// The lists of a Service change.
    Lists { service: u8, lists: Lists },
    /// Time passes.
    Wait(u32),
    /// The kernel evicts an entry.
    Evict(u8),
}

/// Plans.
pub(crate) fn plans() -> impl Strategy<Value = Plan> {
    let services = vec(service(), 1..4);
    (any::<bool>(), prop::bool::weighted(0.9), services, vec(conversation(), 1..5), vec(step(), 1..50))
        .prop_map(|(v6, masquerades, services, conversations, steps)| Plan {
            v6,
            masquerades,
            services,
            conversations,
            steps,
        })
}

fn service() -> impl Strategy<Value = ServicePlan> {
    let kinds = vec![Kind::ClusterIp, Kind::NodePort, Kind::LoadBalancer, Kind::ExternalIp];
    let sometimes = || prop::bool::weighted(0.25);
    (
        select(vec![6, 6, 17, 17, 132]),
        subsequence(kinds, 1..=3),
        sometimes(),
        sometimes(),
        sometimes(),
        lists(),
    )
        .prop_map(|(protocol, kinds, affinity, preserve_source, sources, lists)| ServicePlan {
            protocol,
            kinds,
            affinity,
            preserve_source,
            sources,
            lists,
        })
}

fn lists() -> impl Strategy<Value = Lists> {
    let all = 0..1u8 << ENDPOINTS;
    let one = || prop_oneof![4 => all.clone(), 2 => (0..ENDPOINTS).prop_map(|bit| 1 << bit), 1 => Just(0)];
    // Usually all classes have the same list.
    let listed = prop_oneof![one().prop_map(|list| [list; 3]), [one(), one(), one()]];
    (listed, prop_oneof![Just(0), all.clone()], any::<bool>()).prop_map(|(listed, more, drops)| Lists {
        listed,
        serving: listed[0] | listed[1] | listed[2] | more,
        drops,
    })
}

fn conversation() -> impl Strategy<Value = Conversation> {
    (0..ENDPOINTS, 0..2u8, any::<u8>(), any::<u8>())
        .prop_map(|(client, port, service, frontend)| Conversation { client, port, service, frontend })
}

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![
        8 => (0..ENDPOINTS).prop_map(Who::Host),
        8 => any::<(u8, u8)>().prop_map(|(service, frontend)| Who::Vip(service, frontend)),
        2 => Just(Who::Node),
        1 => select(vec![Who::Unallocated, Who::Foreign, Who::Multicast, Who::Unspecified, Who::Loopback]),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    const FLAGS: [u8; 7] = [0x10, 0x10, 0x02, 0x12, 0x11, 0x04, 0x14];
    let flags = prop_oneof![9 => select(&FLAGS[..]), 1 => any::<u8>()];
    let damage = prop_oneof![
        12 => Just(None),
        1 => (0..66u8, any::<u8>()).prop_map(|(at, byte)| Some(Damage::Byte(at, byte))),
        1 => any::<u8>().prop_map(|left| Some(Damage::Cut(left))),
        1 => Just(Some(Damage::Payload)),
    ];
    let rarely = || prop::bool::weighted(0.1);
    let options = (rarely(), 1..=10u8).prop_map(|(some, words)| if some { words } else { 0 });
    let extension = prop_oneof![
        4 => (select(vec![0, 60]), 0..4u8, any::<u8>()),
        1 => (Just(60), any::<u8>(), any::<u8>()),
        1 => (Just(43), 0..4u8, select(vec![0, 0, 1])),
        2 => (Just(44), Just(0), select(vec![0, 0, 6, 1])),
        1 => (select(vec![51, 135, 139, 255]), 0..2u8, any::<u8>()),
    ];
    let extensions = prop_oneof![8 => Just(Vec::new()), 1 => vec(extension, 1..3), 1 => vec((Just(60), 0..3u8, Just(0)), 0..10)];
    let fragment = prop_oneof![6 => Just(None), 1 => (any::<bool>(), 0..2u8).prop_map(Some)];
    (flags, any::<u8>(), options, extensions, fragment, rarely(), damage).prop_map(
        |(flags, payload, options, extensions, fragment, no_checksum, damage)| Shape {
            flags,
            payload,
            options,
            extensions,
            fragment,
            no_checksum,
            damage,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let talk = (any::<u8>(), any::<bool>(), prop::bool::weighted(0.75), shape()).prop_map(
        |(conversation, answer, in_order, shape)| Step::Talk { conversation, answer, in_order, shape },
    );
    let past = (any::<u8>(), prop::bool::weighted(0.3), any::<bool>(), shape())
        .prop_map(|(conversation, answer, first, shape)| Step::Past { conversation, answer, first, shape });
    let protocol = prop_oneof![4 => select(vec![6, 17, 132]), 1 => select(vec![1, 1, 58, 58, 47, 136])];
    let wild = (0..4u8, who(), who(), any::<(u8, u8)>(), protocol, shape()).prop_map(
        |(program, src, dst, ports, protocol, shape)| Step::Wild {
            program,
            src,
            dst,
            ports,
            protocol,
            shape,
        },
    );
    let complain = (0..8u8, any::<Option<bool>>(), any::<u8>(), any::<Option<u8>>(), shape()).prop_map(
        |(about, router, code, quoted, shape)| Step::Complain { about, router, code, quoted, shape },
    );
    prop_oneof![
        30 => talk,
        4 => past,
        10 => wild,
        4 => complain,
        2 => (any::<u8>(), lists()).prop_map(|(service, lists)| Step::Lists { service, lists }),
        1 => select(vec![4, 4, 40, 300]).prop_map(Step::Wait),
        1 => any::<u8>().prop_map(Step::Evict),
    ]
}
