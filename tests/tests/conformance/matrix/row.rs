//! What is combined, and the rows that come of it.

use std::{fmt, sync::LazyLock};

use lb_tests::{
    cluster::Forwarding,
    lab::Shape,
    oracle::{
        Transport,
        pairwise::{Factors, Rule},
    },
};

use crate::prelude::*;

/// An enumeration whose values are counted and named.
macro_rules! factor {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $value:ident = $text:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$doc])* $value,)+ }

        impl $name {
            /// All of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$value),+];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$value => $text,)+ })
            }
        }
    };
}

factor! {
    /// Who asks. Two nodes have endpoints: `here`, in a zone with a third node that has none, and `there`, in another zone.
    Who {
        /// A pod that is no endpoint, on the node `here`.
        PodHere = "a pod here",
        /// The same on the node `there`.
        PodThere = "a pod there",
        /// The same on the third node.
        PodElsewhere = "a pod elsewhere",
        /// The first endpoint there is.
        Itself = "an endpoint itself",
        /// A process of the node `here`.
        Host = "a process of the node here",
        /// A host outside; its packets enter at the node `here`.
        Outside = "a host outside",
    }
}

factor! {
    /// At which address.
    At {
        /// The cluster IP.
        ClusterIp = "cluster IPs",
        /// The node port of the client's node (a host outside: of `here`).
        NodePortOwn = "node ports of the own node",
        /// The node port of another node: `there`, or `here` for who is not here.
        NodePortOther = "node ports of another node",
        /// The node port at the loopback address.
        NodePortLoopback = "node ports at loopback",
        /// An external IP.
        ExternalIp = "external IPs",
        /// An address of a load balancer.
        LoadBalancer = "load balancer addresses",
    }
}

factor! {
    /// What the endpoints are like: two `here`, two `there`.
    Endpoints {
        /// Those here are ready, there are none there.
        ReadyHere = "ready here",
        /// Those there are ready, there are none here.
        ReadyThere = "ready there",
        /// All are ready.
        ReadyBoth = "ready here and there",
        /// Those there are ready, those here serve while they terminate.
        ReadyThereEndingHere = "ready there, terminating here",
        /// All serve while they terminate.
        EndingBoth = "terminating here and there",
        /// Those there serve while they terminate, there are none here.
        EndingThere = "terminating there",
        /// None is ready, none terminates.
        Unready = "not ready",
        /// There are none.
        None = "none",
    }
}

factor! {
    /// What the slices' hints say.
    Hints {
        /// Nothing.
        None = "no hints",
        /// Every endpoint is for its own zone.
        Zone = "zone hints",
        /// Every endpoint is for its own node, and else its own zone.
        Node = "node hints",
        /// As `Zone`, but the last endpoint has none.
        Incomplete = "zone hints but for one",
    }
}

factor! {
    /// `loadBalancerSourceRanges`.
    Ranges {
        /// None.
        None = "no source ranges",
        /// One contains the client.
        Allows = "source ranges allow",
        /// None contains the client.
        Forbids = "source ranges forbid",
        /// All are of the other family.
        OtherFamily = "source ranges of the other family",
    }
}

factor! {
    /// What else the Service has.
    Build {
        /// Nothing but the way in that is asked for.
        Minimal = "nothing else",
        /// All kinds of ways in.
        Full = "every way in",
    }
}

const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];
const FORWARDING: [Forwarding; 2] = [Forwarding::Stack, Forwarding::Redirect];

/// One combination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) transport: Transport,
    pub(crate) family: IpFamily,
    pub(crate) who: Who,
    pub(crate) at: At,
    pub(crate) internal_local: bool,
    pub(crate) external_local: bool,
    pub(crate) sticky: bool,
    pub(crate) endpoints: Endpoints,
    pub(crate) ranges: Ranges,
    pub(crate) hints: Hints,
    pub(crate) build: Build,
    shape: Shape,
    forwarding: Forwarding,
}

const SIZES: [usize; 13] = [
    TRANSPORTS.len(),
    IpFamily::BOTH.len(),
    Who::ALL.len(),
    At::ALL.len(),
    2,
    2,
    2,
    Endpoints::ALL.len(),
    Ranges::ALL.len(),
    Hints::ALL.len(),
    Build::ALL.len(),
    Shape::ALL.len(),
    FORWARDING.len(),
];

// Positions in a row.
const WHO: usize = 2;
const AT: usize = 3;
const INTERNAL: usize = 4;
const EXTERNAL: usize = 5;
const ENDPOINTS: usize = 7;
const RANGES: usize = 8;
const HINTS: usize = 9;
const BUILD: usize = 10;

const RULES: &[Rule] = &[
    Rule {
        why: "loopback is the node's own to its own processes only",
        factors: &[WHO, AT],
        forbids: |it| At::ALL[it[1]] == At::NodePortLoopback && Who::ALL[it[0]] != Who::Host,
    },
    Rule {
        why: "the API refuses an external policy where there is no external way in",
        factors: &[AT, BUILD, EXTERNAL],
        forbids: |it| At::ALL[it[0]] == At::ClusterIp && Build::ALL[it[1]] == Build::Minimal && it[2] == 1,
    },
    Rule {
        why: "the API refuses source ranges where there is no load balancer",
        factors: &[AT, BUILD, RANGES],
        forbids: |it| {
            At::ALL[it[0]] != At::LoadBalancer
                && Build::ALL[it[1]] == Build::Minimal
                && Ranges::ALL[it[2]] != Ranges::None
        },
    },
    Rule {
        why: "where there are no endpoints, none can be the client",
        factors: &[WHO, ENDPOINTS],
        forbids: |it| Who::ALL[it[0]] == Who::Itself && Endpoints::ALL[it[1]] == Endpoints::None,
    },
    Rule {
        why: "where there are no endpoints, none has hints",
        factors: &[ENDPOINTS, HINTS],
        forbids: |it| Endpoints::ALL[it[0]] == Endpoints::None && Hints::ALL[it[1]] != Hints::None,
    },
];

/// What decides together: all combinations of these occur.
const TOGETHER: &[&[usize]] = &[
    &[WHO, AT, ENDPOINTS],
    &[WHO, AT, EXTERNAL],
    &[WHO, AT, RANGES],
    &[AT, EXTERNAL, ENDPOINTS],
    &[WHO, EXTERNAL, ENDPOINTS],
    &[WHO, INTERNAL, ENDPOINTS],
];

impl Row {
    /// The matrix; the same one every time.
    pub(crate) fn all() -> &'static [Self] {
        static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
            let factors = Factors { sizes: &SIZES, rules: RULES, together: TOGETHER };
            factors.rows().iter().map(|values| Row::new(values)).collect()
        });
        &ROWS
    }

    fn new(values: &[usize]) -> Self {
        let &[
            transport,
            family,
            who,
            at,
            internal,
            external,
            sticky,
            endpoints,
            ranges,
            hints,
            build,
            shape,
            mode,
        ] = values
        else {
            unreachable!("a row has a value for each factor")
        };
        Self {
            transport: TRANSPORTS[transport],
            family: IpFamily::BOTH[family],
            who: Who::ALL[who],
            at: At::ALL[at],
            internal_local: internal == 1,
            external_local: external == 1,
            sticky: sticky == 1,
            endpoints: Endpoints::ALL[endpoints],
            ranges: Ranges::ALL[ranges],
            hints: Hints::ALL[hints],
            build: Build::ALL[build],
            shape: Shape::ALL[shape],
            forwarding: FORWARDING[mode],
        }
    }

    /// Whether it belongs to this variant.
    pub(crate) fn is_for(&self, variant: Variant) -> bool {
        (self.shape, self.forwarding) == (variant.shape, variant.forwarding)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = |local| if local { "Local" } else { "Cluster" };
        let Self { family, who, at, endpoints, ranges, hints, build, .. } = self;
        write!(
            f,
            "{}/{family} from {who} at {at}; endpoints {endpoints}, {hints}; internal policy {}, external {}, affinity {}, \
             {ranges}; the Service has {build}",
            self.transport.name(),
            policy(self.internal_local),
            policy(self.external_local),
            if self.sticky { "ClientIP" } else { "None" },
        )
    }
}
