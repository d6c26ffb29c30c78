//! The model by hand: every rule with an answer that was worked out from its text.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;

const POD1: &str = "10.244.1.9";
const NODE1: &str = "172.18.0.11";
const NODE2: &str = "172.18.0.12";
const OUTSIDE: &str = "172.18.3.233";
const CLUSTER_IP: &str = "10.96.0.7";
const EXTERNAL_IP: &str = "198.51.100.7";
const VIP: &str = "203.0.113.7";
const NODE_PORT: u16 = 30_080;

/// Endpoints on n1 (.2, .3) and n2 (.2, .3).
const HERE: [&str; 2] = ["10.244.1.2", "10.244.1.3"];
const THERE: [&str; 2] = ["10.244.2.2", "10.244.2.3"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn machines() -> Vec<Machine> {
    [("n1", "z1", [NODE1, "fd00:172:18::b"]), ("n2", "z2", [NODE2, "fd00:172:18::c"])]
        .map(|(name, zone, addresses)| Machine {
            name: name.into(),
            zone: Some(zone.into()),
            addresses: addresses.map(ip).to_vec(),
        })
        .to_vec()
}

/// A Service with every kind of frontend; `more` is merged into its `spec`.
fn service(more: Value) -> Value {
    let mut spec = json!({
        "type": "LoadBalancer", "clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP], "externalIPs": [EXTERNAL_IP],
        "ports": [{"port": 80, "nodePort": NODE_PORT}],
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({
        "metadata": {"namespace": "shop", "name": "web"}, "spec": spec,
        "status": {"loadBalancer": {"ingress": [{"ip": VIP, "ipMode": "VIP"}]}},
    })
}

fn ready(address: &str, node: &str) -> Value {
    json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}})
}

fn ending(address: &str, node: &str) -> Value {
    let conditions = json!({"ready": false, "serving": true, "terminating": true});
    json!({"addresses": [address], "nodeName": node, "conditions": conditions})
}

fn hinted(address: &str, node: &str, kind: &str, names: &[&str]) -> Value {
    let names: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
    let mut endpoint = ready(address, node);
    endpoint["hints"] = json!({kind: names});
    endpoint
}

fn slice(endpoints: Vec<Value>) -> Value {
    json!({
        "metadata": {
            "namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": endpoints,
    })
}

/// Two ready endpoints on each node.
fn everywhere() -> Vec<Value> {
    HERE.iter().map(|it| ready(it, "n1")).chain(THERE.iter().map(|it| ready(it, "n2"))).collect()
}

fn pod() -> Client {
    Client::Pod { node: "n1".into(), address: ip(POD1) }
}

fn host() -> Client {
    Client::Host { node: "n1".into(), address: ip(NODE1) }
}

fn outside() -> Client {
    Client::Outside { through: "n1".into(), address: ip(OUTSIDE) }
}

fn ask(service: &Value, slices: &[Value], from: Client, to: (&str, u16)) -> Verdict {
    let machines = machines();
    let world = World { service, slices, machines: &machines };
    answer(&world, &Attempt { from, to: SocketAddr::new(ip(to.0), to.1), transport: Transport::Tcp })
}

fn reaches(endpoints: &[&str], source: &Source) -> Verdict {
    let endpoints = endpoints.iter().map(|it| (SocketAddr::new(ip(it), 8080), source.clone())).collect();
    Verdict::Reaches { endpoints, sticky: None }
}

fn all() -> Vec<&'static str> {
    HERE.iter().chain(&THERE).copied().collect()
}

fn node(name: &str) -> Source {
    Source::Node(name.into())
}

/// Every way in from inside and outside: client, destination.
fn external_ways() -> Vec<(&'static str, u16)> {
    vec![(NODE1, NODE_PORT), (EXTERNAL_IP, 80), (VIP, 80)]
}

#[test]
fn s03_services_without_traffic_of_their_own_are_left_alone() {
    let slices = [slice(everywhere())];
    for more in [
        json!({"type": "ExternalName"}),
        json!({"clusterIP": "None", "clusterIPs": ["None"]}),
        json!({"clusterIP": "", "clusterIPs": []}),
    ] {
        let service = service(more);
        for to in [(CLUSTER_IP, 80), (VIP, 80), (NODE1, NODE_PORT)] {
            assert_eq!(ask(&service, &slices, pod(), to), Verdict::Untouched, "{service} {to:?}");
        }
    }
}

#[test]
fn s04_each_family_has_its_own_endpoints() {
    let mut six = slice(vec![ready("fd00:10:244:1::2", "n1")]);
    six["addressType"] = "IPv6".into();
    let (service, four) = (service(json!({"clusterIPs": [CLUSTER_IP, "fd00:96::7"]})), service(json!({})));
    let from = Client::Pod { node: "n1".into(), address: ip("fd00:10:244:1::9") };
    let slices = [slice(everywhere()), six];
    assert_eq!(
        ask(&service, &slices, from.clone(), ("fd00:96::7", 80)),
        reaches(&["fd00:10:244:1::2"], &Source::Client)
    );
    assert_eq!(ask(&service, &slices, pod(), (CLUSTER_IP, 80)), reaches(&all(), &Source::Client));
    // The other family having endpoints helps nobody.
    assert_eq!(ask(&service, &slices[..1], from.clone(), ("fd00:96::7", 80)), Verdict::Refused);
    // A family without a cluster IP has no frontends at all, whatever node ports there are.
    assert_eq!(ask(&four, &slices, from, ("fd00:172:18::b", NODE_PORT)), Verdict::Untouched);
}

#[test]
fn s11_ports_are_found_by_name_and_protocol() {
    let service = service(json!({"ports": [
        {"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "odd", "port": 81},
    ]}));
    let mut first = slice(vec![ready(HERE[0], "n1")]);
    first["ports"] = json!([
        {"name": "http", "port": 8080}, {"name": "dns", "port": 8080}, {"port": 9}, {"name": "odd", "port": 0},
    ]);
    let mut second = slice(vec![ready(THERE[0], "n2")]);
    second["ports"] = json!([{"name": "http", "port": 9090}]);
    let slices = [first, second];
    let expected = [
        (SocketAddr::new(ip(HERE[0]), 8080), Source::Client),
        (SocketAddr::new(ip(THERE[0]), 9090), Source::Client),
    ];
    assert_eq!(
        ask(&service, &slices, pod(), (CLUSTER_IP, 80)),
        Verdict::Reaches { endpoints: expected.into(), sticky: None }
    );
    // The slice's port `dns` is one of TCP; a port without a number leads nowhere.
    let machines = machines();
    let world = World { service: &service, slices: &slices, machines: &machines };
    let dns = Attempt { from: pod(), to: SocketAddr::new(ip(CLUSTER_IP), 53), transport: Transport::Udp };
    assert_eq!(answer(&world, &dns), Verdict::Refused);
    assert_eq!(ask(&service, &slices, pod(), (CLUSTER_IP, 81)), Verdict::Refused);
}

#[test]
fn s12_absent_fields_have_defaults_and_octets_are_decimal() {
    let slices =
        [slice(vec![json!({"addresses": ["010.244.001.002", "10.244.1.3"]}), json!({"addresses": []})])];
    assert_eq!(
        ask(&service(json!({})), &slices, pod(), (CLUSTER_IP, 80)),
        reaches(&["10.244.1.2"], &Source::Client)
    );
    // Without a node name it is on no node.
    let local = service(json!({"internalTrafficPolicy": "Local"}));
    assert_eq!(ask(&local, &slices, pod(), (CLUSTER_IP, 80)), Verdict::Dropped);
}

#[test]
fn s13_a_local_copy_wins() {
    let [remote, local] = [ready(HERE[0], "n2"), ready(HERE[0], "n1")];
    let policy = service(json!({"internalTrafficPolicy": "Local"}));
    for order in [[remote.clone(), local.clone()], [local, remote]] {
        let slices = order.map(|endpoint| slice(vec![endpoint]));
        assert_eq!(ask(&policy, &slices, pod(), (CLUSTER_IP, 80)), reaches(&HERE[..1], &Source::Client));
    }
}

#[test]
fn s14_ports_of_load_balancers_that_deliver_to_the_nodes_are_not_ours() {
    let mut service = service(json!({}));
    service["status"]["loadBalancer"]["ingress"] =
        json!([{"ip": VIP, "ipMode": "Proxy"}, {"hostname": "lb.example"}]);
    assert_eq!(ask(&service, &[slice(everywhere())], outside(), (VIP, 80)), Verdict::Untouched);
    // An absent mode means VIP.
    service["status"]["loadBalancer"]["ingress"] = json!([{"ip": VIP}]);
    assert_eq!(ask(&service, &[slice(everywhere())], outside(), (VIP, 80)), reaches(&all(), &node("n1")));
}

#[test]
fn s14_the_external_policy_belongs_to_services_with_external_frontends() {
    // A plain ClusterIP Service has no external policy, even if a stored one says so.
    let plain = json!({"type": "ClusterIP", "externalIPs": [], "externalTrafficPolicy": "Local"});
    assert!(!frontends::external_policy_local(&service(plain)));
    let with_ips = json!({"type": "ClusterIP", "externalTrafficPolicy": "Local"});
    assert!(frontends::external_policy_local(&service(with_ips)));
}

#[test]
fn s20_ready_before_ending_before_nothing() {
    let service = service(json!({}));
    let unready =
        json!({"addresses": [HERE[1]], "nodeName": "n1", "conditions": {"ready": false, "serving": false}});
    let dead = json!({
        "addresses": [THERE[1]], "nodeName": "n2",
        "conditions": {"ready": false, "serving": false, "terminating": true},
    });
    let cluster = (CLUSTER_IP, 80);
    let with = |endpoints: Vec<Value>| ask(&service, &[slice(endpoints)], pod(), cluster);
    let ending_there = ending(THERE[0], "n2");
    assert_eq!(
        with(vec![ready(HERE[0], "n1"), unready.clone(), dead.clone(), ending_there.clone()]),
        reaches(&HERE[..1], &Source::Client)
    );
    assert_eq!(
        with(vec![unready.clone(), dead.clone(), ending_there]),
        reaches(&THERE[..1], &Source::Client)
    );
    assert_eq!(with(vec![unready, dead]), Verdict::Refused);
    assert_eq!(with(Vec::new()), Verdict::Refused);
    assert_eq!(ask(&service, &[], pod(), cluster), Verdict::Refused);
}

#[test]
fn s20_the_two_fallbacks_do_not_know_of_each_other() {
    // Ready there, ending here: Cluster takes the ready one, Local the one that is here.
    let slices = [slice(vec![ready(THERE[0], "n2"), ending(HERE[0], "n1")])];
    let local = service(json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}));
    assert_eq!(ask(&local, &slices, pod(), (CLUSTER_IP, 80)), reaches(&HERE[..1], &Source::Client));
    assert_eq!(ask(&local, &slices, outside(), (VIP, 80)), reaches(&HERE[..1], &Source::Client));
    assert_eq!(ask(&local, &slices, pod(), (VIP, 80)), reaches(&THERE[..1], &Source::Client));
    let cluster = service(json!({}));
    assert_eq!(ask(&cluster, &slices, pod(), (CLUSTER_IP, 80)), reaches(&THERE[..1], &Source::Client));
}

#[test]
fn s20_hints_count_when_all_have_them_and_one_means_us() {
    let service = service(json!({}));
    let with = |endpoints: Vec<Value>| ask(&service, &[slice(endpoints)], pod(), (CLUSTER_IP, 80));
    let zone = |address, node, zone| hinted(address, node, "forZones", &[zone]);
    assert_eq!(
        with(vec![zone(HERE[0], "n1", "z1"), zone(THERE[0], "n2", "z2")]),
        reaches(&HERE[..1], &Source::Client)
    );
    // One without a hint, or none for us, and all may be used.
    let both = reaches(&[HERE[0], THERE[0]], &Source::Client);
    assert_eq!(with(vec![zone(HERE[0], "n1", "z1"), ready(THERE[0], "n2")]), both);
    assert_eq!(with(vec![zone(HERE[0], "n1", "z3"), zone(THERE[0], "n2", "z2")]), both);
    // Hints for nodes come first; ending endpoints have no say.
    let mut by_node = hinted(HERE[0], "n1", "forZones", &["z2"]);
    by_node["hints"]["forNodes"] = json!([{"name": "n1"}]);
    let mut other = hinted(THERE[0], "n2", "forZones", &["z1"]);
    other["hints"]["forNodes"] = json!([{"name": "n2"}]);
    assert_eq!(with(vec![by_node, other, ending(HERE[1], "n1")]), reaches(&HERE[..1], &Source::Client));
    // Ending ones are used whatever their hints say, and a hint does not make an unready one.
    let mut far = ending(THERE[0], "n2");
    far["hints"] = json!({"forZones": [{"name": "z9"}]});
    assert_eq!(with(vec![far]), reaches(&THERE[..1], &Source::Client));
}

#[test]
fn s20_hints_do_not_reach_local_policies() {
    let slices = [slice(vec![
        hinted(HERE[0], "n1", "forZones", &["z2"]),
        hinted(THERE[0], "n2", "forZones", &["z1"]),
    ])];
    let local = service(json!({"internalTrafficPolicy": "Local"}));
    assert_eq!(ask(&local, &slices, pod(), (CLUSTER_IP, 80)), reaches(&HERE[..1], &Source::Client));
}

#[test]
fn s21_nobody_anywhere_is_refused_at_every_way_in() {
    for more in [json!({}), json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"})] {
        let service = service(more);
        for from in [pod(), host(), outside()] {
            for to in external_ways().into_iter().chain([(CLUSTER_IP, 80)]) {
                assert_eq!(ask(&service, &[], from.clone(), to), Verdict::Refused, "{from:?} {to:?}");
            }
        }
    }
}

#[test]
fn s22_a_local_policy_without_anybody_here_drops() {
    let slices = [slice(vec![ready(THERE[0], "n2")])];
    let local = service(json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}));
    for from in [pod(), host(), outside()] {
        assert_eq!(ask(&local, &slices, from, (CLUSTER_IP, 80)), Verdict::Dropped);
    }
    for to in external_ways() {
        assert_eq!(ask(&local, &slices, outside(), to), Verdict::Dropped);
        // Inside the cluster there are other endpoints to go to.
        assert_eq!(ask(&local, &slices, pod(), to), reaches(&THERE[..1], &Source::Client));
        assert_eq!(ask(&local, &slices, host(), to), reaches(&THERE[..1], &node("n1")));
    }
}

#[test]
fn s23_s37_unknown_ports() {
    let (service, slices) = (service(json!({})), [slice(everywhere())]);
    for from in [pod(), host(), outside()] {
        assert_eq!(ask(&service, &slices, from.clone(), (CLUSTER_IP, 81)), Verdict::Refused);
        for to in [(EXTERNAL_IP, 81), (VIP, 81), (NODE1, 80), ("192.0.2.1", 80)] {
            assert_eq!(ask(&service, &slices, from.clone(), to), Verdict::Untouched, "{to:?}");
        }
    }
    // The same number of the other protocol is another port.
    let machines = machines();
    let world = World { service: &service, slices: &slices, machines: &machines };
    let udp = |to: &str, port| {
        let to = SocketAddr::new(ip(to), port);
        answer(&world, &Attempt { from: pod(), to, transport: Transport::Udp })
    };
    assert_eq!(udp(CLUSTER_IP, 80), Verdict::Refused);
    assert_eq!(udp(VIP, 80), Verdict::Untouched);
    assert_eq!(udp(NODE1, NODE_PORT), Verdict::Untouched);
}

#[test]
fn s30_pods_keep_their_address_at_cluster_ips_and_strangers_do_not() {
    let (service, slices) = (service(json!({})), [slice(everywhere())]);
    let to = (CLUSTER_IP, 80);
    assert_eq!(ask(&service, &slices, pod(), to), reaches(&all(), &Source::Client));
    assert_eq!(ask(&service, &slices, host(), to), reaches(&all(), &node("n1")));
    assert_eq!(ask(&service, &slices, outside(), to), reaches(&all(), &node("n1")));
}

#[test]
fn s31_an_endpoint_does_not_see_itself() {
    let (service, slices) = (service(json!({})), [slice(vec![ready(HERE[0], "n1"), ready(THERE[0], "n2")])]);
    let itself = Client::Pod { node: "n1".into(), address: ip(HERE[0]) };
    let Verdict::Reaches { endpoints, .. } = ask(&service, &slices, itself, (CLUSTER_IP, 80)) else {
        panic!("an endpoint reaches its own Service");
    };
    let seen: Vec<&Source> = endpoints.values().collect();
    assert_eq!(seen, [&Source::NotItself, &Source::Client]);
}

#[test]
fn s33_external_policy_cluster_hides_every_client() {
    let (service, slices) = (service(json!({})), [slice(everywhere())]);
    for from in [pod(), host(), outside()] {
        for to in external_ways() {
            assert_eq!(
                ask(&service, &slices, from.clone(), to),
                reaches(&all(), &node("n1")),
                "{from:?} {to:?}"
            );
        }
    }
}

#[test]
fn s33_external_policy_local_short_circuits_inside_and_keeps_outside() {
    // The internal policy has no say.
    let service = service(json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}));
    let slices = [slice(everywhere())];
    for to in external_ways() {
        assert_eq!(ask(&service, &slices, pod(), to), reaches(&all(), &Source::Client));
        assert_eq!(ask(&service, &slices, host(), to), reaches(&all(), &node("n1")));
        assert_eq!(ask(&service, &slices, outside(), to), reaches(&HERE, &Source::Client));
    }
}

#[test]
fn s33_at_another_node_everybody_comes_from_the_network() {
    let slices = [slice(everywhere())];
    let (cluster, local) = (service(json!({})), service(json!({"externalTrafficPolicy": "Local"})));
    for from in [pod(), host(), outside()] {
        let to = (NODE2, NODE_PORT);
        assert_eq!(ask(&cluster, &slices, from.clone(), to), reaches(&all(), &node("n2")));
        assert_eq!(ask(&local, &slices, from, to), reaches(&THERE, &Source::Client));
    }
    let nobody_there = [slice(vec![ready(HERE[0], "n1")])];
    assert_eq!(ask(&local, &nobody_there, pod(), (NODE2, NODE_PORT)), Verdict::Dropped);
}

#[test]
fn s34_ranges_are_for_load_balancer_addresses_alone() {
    let slices = [slice(everywhere())];
    let ranges = |list: &[&str]| service(json!({"loadBalancerSourceRanges": list}));
    let open = reaches(&all(), &node("n1"));
    let closed = ranges(&["192.0.2.0/24"]);
    for from in [pod(), host(), outside()] {
        assert_eq!(ask(&closed, &slices, from.clone(), (VIP, 80)), Verdict::Dropped);
        // Also before anybody asks whether there is an endpoint.
        assert_eq!(ask(&closed, &[], from.clone(), (VIP, 80)), Verdict::Dropped);
        for to in [(NODE1, NODE_PORT), (EXTERNAL_IP, 80)] {
            assert_eq!(ask(&closed, &slices, from.clone(), to), open);
        }
    }
    assert_eq!(ask(&ranges(&["192.0.2.0/24", " 172.18.3.232/31 "]), &slices, outside(), (VIP, 80)), open);
    assert_eq!(ask(&ranges(&["172.18.3.234/31"]), &slices, outside(), (VIP, 80)), Verdict::Dropped);
    assert_eq!(ask(&ranges(&["10.244.1.0/24"]), &slices, pod(), (VIP, 80)), open);
    // A node may when one of its own addresses may.
    assert_eq!(ask(&ranges(&["172.18.0.11/32"]), &slices, host(), (VIP, 80)), open);
    assert_eq!(ask(&ranges(&["172.18.0.12/32"]), &slices, host(), (VIP, 80)), Verdict::Dropped);
    // Nobody is restricted by ranges of the other family, nor by a list with one that contains everybody.
    for list in [&["2001:db8::/32"][..], &["192.0.2.0/24", "0.0.0.0/0"]] {
        for from in [pod(), host(), outside()] {
            assert_eq!(ask(&ranges(list), &slices, from, (VIP, 80)), open);
        }
    }
}

#[test]
fn s35_s36_node_ports_are_at_the_nodes_own_addresses() {
    let (service, slices) = (service(json!({})), [slice(everywhere())]);
    let loopback = ("127.0.0.1", NODE_PORT);
    assert_eq!(ask(&service, &slices, host(), loopback), reaches(&all(), &node("n1")));
    // A pod's loopback is its own.
    assert_eq!(ask(&service, &slices, pod(), loopback), Verdict::Untouched);
    assert_eq!(ask(&service, &slices, outside(), ("172.18.0.13", NODE_PORT)), Verdict::Untouched);
}

#[test]
fn s40_affinity_has_a_default_of_three_hours() {
    let slices = [slice(everywhere())];
    let sticky = |more| match ask(&service(more), &slices, outside(), (VIP, 80)) {
        Verdict::Reaches { sticky, endpoints } => {
            let reached: BTreeSet<SocketAddr> = endpoints.into_keys().collect();
            assert_eq!(reached.len(), 4);
            sticky
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(sticky(json!({})), None);
    assert_eq!(sticky(json!({"sessionAffinity": "None"})), None);
    assert_eq!(sticky(json!({"sessionAffinity": "ClientIP"})), Some(10_800));
    let config = json!({"clientIP": {"timeoutSeconds": 3}});
    assert_eq!(sticky(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config})), Some(3));
}
