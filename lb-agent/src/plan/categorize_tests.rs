//! CategorizeEndpoints by table: every branch of spec 2.3 and its notes, and the topology cases known from upstream.

use super::*;
use crate::model::Conditions;

/// One endpoint in short: `name[@node] state [z=zone,zone] [n=node,node]`, where state is one of `ready`, `notready`,
/// `serving` (terminating and serving), `dead` (terminating, not serving), `published` (ready though terminating).
fn endpoint(text: &str) -> (String, Endpoint) {
    let mut words = text.split_whitespace();
    let (name, node) =
        words.next().map(|w| w.split_once('@').map_or((w, None), |(n, at)| (n, Some(at)))).unwrap();
    let (ready, serving, terminating) = match words.next().unwrap() {
        "ready" => (true, true, false),
        "notready" => (false, false, false),
        "serving" => (false, true, true),
        "dead" => (false, false, true),
        "published" => (true, true, true),
        other => panic!("unknown state {other}"),
    };
    let mut zone_hints = Vec::new();
    let mut node_hints = Vec::new();
    for word in words {
        let (kind, names) = word.split_once('=').unwrap();
        let names = names.split(',').map(Into::into);
        match kind {
            "z" => zone_hints.extend(names),
            "n" => node_hints.extend(names),
            other => panic!("unknown hint {other}"),
        }
    }
    let number: u8 = name.trim_start_matches('e').parse().unwrap();
    let endpoint = Endpoint {
        address: IpAddr::from([10, 0, 0, number]),
        conditions: Conditions { ready, serving, terminating },
        node_name: node.map(Into::into),
        zone_hints: zone_hints.into(),
        node_hints: node_hints.into(),
    };
    (name.to_owned(), endpoint)
}

struct Case {
    name: &'static str,
    /// Name and zone of our node, `""` for none.
    node: (&'static str, &'static str),
    endpoints: &'static [&'static str],
    cluster: &'static [&'static str],
    local: &'static [&'static str],
    /// `hasAny` when only the cluster list, only the local list, both are asked for.
    has_any: [bool; 3],
}

const CASES: &[Case] = &[
    Case {
        name: "no endpoints",
        node: ("n1", "z1"),
        endpoints: &[],
        cluster: &[],
        local: &[],
        has_any: [false; 3],
    },
    Case {
        name: "ready endpoints, some of them here",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 ready", "e2@n2 ready", "e3 ready"],
        cluster: &["e1", "e2", "e3"],
        local: &["e1"],
        has_any: [true; 3],
    },
    Case {
        name: "ready endpoints, none of them here",
        node: ("n1", "z1"),
        endpoints: &["e1@n2 ready", "e2@n3 ready"],
        cluster: &["e1", "e2"],
        local: &[],
        has_any: [true; 3],
    },
    Case {
        name: "without a node name nothing is local",
        node: ("", "z1"),
        endpoints: &["e1@n1 ready", "e2 ready"],
        cluster: &["e1", "e2"],
        local: &[],
        has_any: [true; 3],
    },
    Case {
        name: "not ready and not terminating is of no use",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 notready", "e2@n2 notready"],
        cluster: &[],
        local: &[],
        has_any: [false; 3],
    },
    Case {
        name: "terminating and no longer serving is of no use",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 dead", "e2@n2 dead"],
        cluster: &[],
        local: &[],
        has_any: [false; 3],
    },
    Case {
        name: "a ready endpoint keeps terminating ones out",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 ready", "e2@n1 serving", "e3@n2 serving"],
        cluster: &["e1"],
        local: &["e1"],
        has_any: [true; 3],
    },
    Case {
        name: "all terminating: those that serve are used",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 serving", "e2@n2 serving", "e3@n1 dead", "e4@n1 notready"],
        cluster: &["e1", "e2"],
        local: &["e1"],
        has_any: [true; 3],
    },
    Case {
        name: "note a: the fallbacks are independent, here only the local one",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 serving", "e2@n2 ready"],
        cluster: &["e2"],
        local: &["e1"],
        has_any: [true; 3],
    },
    Case {
        name: "note a: the fallbacks are independent, all serving elsewhere",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 dead", "e2@n2 serving"],
        cluster: &["e2"],
        local: &[],
        has_any: [true; 3],
    },
    Case {
        name: "note b: the fallback ignores topology",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 serving z=z1 n=n1", "e2@n2 serving z=z2 n=n2"],
        cluster: &["e1", "e2"],
        local: &["e1"],
        has_any: [true; 3],
    },
    Case {
        name: "note c: published endpoints are ready, terminating or not",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 published", "e2@n2 serving"],
        cluster: &["e1"],
        local: &["e1"],
        has_any: [true; 3],
    },
    Case {
        name: "zone hints",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 ready z=z1", "e2@n2 ready z=z2", "e3@n3 ready z=z2,z1"],
        cluster: &["e1", "e3"],
        local: &["e1"],
        has_any: [true; 3],
    },
    Case {
        name: "zone hints do not concern the local list",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 ready z=z2", "e2@n2 ready z=z1"],
        cluster: &["e2"],
        local: &["e1"],
        has_any: [true; 3],
    },
    Case {
        name: "one ready endpoint without a zone hint disables them all",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 ready z=z1", "e2@n2 ready"],
        cluster: &["e1", "e2"],
        local: &["e1"],
        has_any: [true; 3],
    },
    Case {
        name: "an endpoint that is not ready may lack its hint",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 ready z=z1", "e2@n2 ready z=z2", "e3@n2 notready", "e4@n3 serving"],
        cluster: &["e1"],
        local: &["e1"],
        has_any: [true; 3],
    },
    Case {
        name: "note d: without a zone of ours zone hints do not apply",
        node: ("n1", ""),
        endpoints: &["e1@n1 ready z=z1", "e2@n2 ready z=z2"],
        cluster: &["e1", "e2"],
        local: &["e1"],
        has_any: [true; 3],
    },
    Case {
        name: "note e: no ready endpoint for our zone, so the zone does not count",
        node: ("n1", "z9"),
        endpoints: &["e1@n1 ready z=z1", "e2@n2 ready z=z2"],
        cluster: &["e1", "e2"],
        local: &["e1"],
        has_any: [true; 3],
    },
    Case {
        name: "note e: the endpoint for our zone is not ready, the others are used",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 notready z=z1", "e2@n2 ready z=z2"],
        cluster: &["e2"],
        local: &[],
        has_any: [true; 3],
    },
    Case {
        name: "node hints win over zone hints",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 ready z=z1 n=n1", "e2@n2 ready z=z1 n=n2", "e3@n3 ready z=z2 n=n3"],
        cluster: &["e1"],
        local: &["e1"],
        has_any: [true; 3],
    },
    Case {
        name: "note f: no endpoint for our node, the zone decides",
        node: ("n9", "z1"),
        endpoints: &["e1@n1 ready z=z1 n=n1", "e2@n2 ready z=z1 n=n2", "e3@n3 ready z=z2 n=n3"],
        cluster: &["e1", "e2"],
        local: &[],
        has_any: [true; 3],
    },
    Case {
        name: "note f: one node hint missing, the zone decides",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 ready z=z1 n=n1", "e2@n2 ready z=z1", "e3@n3 ready z=z2 n=n3"],
        cluster: &["e1", "e2"],
        local: &["e1"],
        has_any: [true; 3],
    },
    Case {
        name: "note f: neither node nor zone means us",
        node: ("n9", "z9"),
        endpoints: &["e1@n1 ready z=z1 n=n1", "e2@n2 ready z=z2 n=n2"],
        cluster: &["e1", "e2"],
        local: &[],
        has_any: [true; 3],
    },
    Case {
        name: "node hints without zone hints",
        node: ("n1", ""),
        endpoints: &["e1@n2 ready n=n1", "e2@n1 ready n=n2"],
        cluster: &["e1"],
        local: &["e2"],
        has_any: [true; 3],
    },
    Case {
        name: "without a node name node hints mean nobody",
        node: ("", "z1"),
        endpoints: &["e1@n1 ready z=z1 n=n1", "e2@n2 ready z=z2 n=n2"],
        cluster: &["e1"],
        local: &[],
        has_any: [true; 3],
    },
    Case {
        name: "note g: hints as PreferSameZone writes them, the zone's only endpoint terminates",
        node: ("n1", "z1"),
        endpoints: &["e1@n1 serving z=z1", "e2@n2 ready z=z2", "e3@n3 ready z=z2"],
        cluster: &["e2", "e3"],
        local: &["e1"],
        has_any: [true; 3],
    },
];

#[test]
fn table() {
    for case in CASES {
        let node = NodeFacts {
            name: case.node.0.into(),
            zone: Some(case.node.1).filter(|zone| !zone.is_empty()).map(Into::into),
        };
        let (names, candidates): (Vec<_>, Vec<_>) = case
            .endpoints
            .iter()
            .map(|text| endpoint(text))
            .map(|(name, endpoint)| (name, Candidate::new(&endpoint, 80, &node)))
            .unzip();
        let named = |indices: &[u32]| indices.iter().map(|i| names[*i as usize].as_str()).collect::<Vec<_>>();

        let cluster = categorize(&candidates, true, false);
        assert_eq!(named(&cluster.cluster), case.cluster, "{}: cluster", case.name);
        assert_eq!(named(&cluster.local), [""; 0], "{}: local was not asked for", case.name);

        let local = categorize(&candidates, false, true);
        assert_eq!(named(&local.cluster), [""; 0], "{}: cluster was not asked for", case.name);
        assert_eq!(named(&local.local), case.local, "{}: local", case.name);

        let both = categorize(&candidates, true, true);
        assert_eq!((both.cluster, both.local), (cluster.cluster, local.local), "{}: both", case.name);

        let has_any = [cluster.has_any, local.has_any, both.has_any];
        assert_eq!(has_any, case.has_any, "{}: has any", case.name);
        assert_eq!(categorize(&candidates, false, false), Categories::default(), "{}: neither", case.name);
    }
}
