//! Clients outside: network devices come and go, node port addresses change, agents are replaced under their traffic.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lb_tests::{
    cluster::{Cluster, Forwarding, url},
    lab::{Caller, Family, Node, Shape},
    workload::{Load, NetError, http_get},
};
use serde_json::{Value, json};

use crate::common::{SECONDS, builder, index, ip, service, until, web};

/// Longer than a network device keeps its programs after its last address has gone.
const LINGER: Duration = Duration::from_secs(12);

/// Programs at a device, by the pins of their links.
fn programs(cluster: &Cluster, node: &Node, index: u32) -> BTreeSet<String> {
    let directory = cluster.bpf_root(node).join("links");
    let names = std::fs::read_dir(directory)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix(&format!("{index}-")).map(str::to_owned)).collect()
}

fn both() -> BTreeSet<String> {
    ["from_net", "to_net"].map(str::to_owned).into()
}

/// Addresses that masqueraded flows get, IPv4, by interface index.
async fn masquerade_rows(cluster: &Cluster, node: &Node) -> Vec<(u32, IpAddr)> {
    let path = cluster.bpf_root(node).join("maps/MASQUERADE").display().to_string();
    let output = node.exec(&["bpftool", "-j", "map", "dump", "pinned", &path], &[], SECONDS).await.unwrap();
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bytes = |value: &Value| -> Vec<u8> {
        let texts = value.as_array().unwrap().iter();
        texts
            .map(|text| u8::from_str_radix(text.as_str().unwrap().trim_start_matches("0x"), 16).unwrap())
            .collect()
    };
    let mut found: Vec<(u32, IpAddr)> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let (key, value) = (bytes(&row["key"]), bytes(&row["value"]));
            let v4: [u8; 4] = value[16..20].try_into().unwrap();
            (u32::from_ne_bytes(key.try_into().unwrap()), IpAddr::from(v4))
        })
        .collect();
    found.sort_unstable();
    found
}

/// A cluster of one node with a host outside, and the Service `web` with a node port.
async fn with_node_port(shape: Shape, forwarding: Forwarding, arguments: &[&str]) -> (Cluster, u16) {
    let cluster = builder(Family::V4, shape, forwarding)
        .clients(1)
        .agent_args(arguments.iter().copied())
        .start()
        .await
        .unwrap();
    let mut object = service("web", json!({"app": "web"}));
    object["spec"]["type"] = "NodePort".into();
    let created = cluster.api().create(&object).unwrap();
    let port = created["spec"]["ports"][0]["nodePort"].as_u64().unwrap() as u16;
    for number in 0..2 {
        web(&cluster, number).await;
    }
    cluster.settle("default").await.unwrap();
    (cluster, port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_has_programs_while_it_has_an_address_and_leads_out() {
    let cluster = builder(Family::Dual, Shape::Bridged, Forwarding::Stack).start().await.unwrap();
    let node = cluster.node(0).clone();
    let eth0 = index(&node, "eth0").await;
    assert_eq!(programs(&cluster, &node, eth0), both());
    assert_eq!(programs(&cluster, &node, index(&node, "cni0").await), BTreeSet::new(), "a bridge of pods");

    ip(&node, "link add wan0 type veth peer name wan0peer").await;
    ip(&node, "link set wan0 up").await;
    ip(&node, "link set wan0peer up").await;
    ip(&node, "tuntap add dev tun9 mode tun").await;
    ip(&node, "addr add 198.51.100.9/24 dev tun9").await;
    let wan = index(&node, "wan0").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(programs(&cluster, &node, wan), BTreeSet::new(), "without an address");
    ip(&node, "addr add 203.0.113.7/24 dev wan0").await;
    until("programs at wan0", async || programs(&cluster, &node, wan) == both()).await;
    assert_eq!(programs(&cluster, &node, index(&node, "tun9").await), BTreeSet::new(), "no Ethernet header");
    let expected =
        [(0, node.addresses()[0]), (eth0, node.addresses()[0]), (wan, "203.0.113.7".parse().unwrap())];
    until("addresses to masquerade with", async || {
        let rows = masquerade_rows(&cluster, &node).await;
        expected.iter().all(|row| rows.contains(row))
    })
    .await;

    // Another name is no other device.
    ip(&node, "link set wan0 down").await;
    ip(&node, "link set wan0 name uplink0").await;
    ip(&node, "link set uplink0 up").await;
    // An address that is set anew leaves no gap.
    ip(&node, "addr del 203.0.113.7/24 dev uplink0").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ip(&node, "addr add 203.0.113.8/24 dev uplink0").await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(programs(&cluster, &node, wan), both());
    // As the port of a bridge it leads out no more by itself, but the bridge does.
    ip(&node, "link add br-lan type bridge").await;
    ip(&node, "link set br-lan up").await;
    ip(&node, "addr del 203.0.113.8/24 dev uplink0").await;
    ip(&node, "link set uplink0 master br-lan").await;
    ip(&node, "addr add 203.0.113.8/24 dev br-lan").await;
    let bridge = index(&node, "br-lan").await;
    until("programs at the bridge", async || programs(&cluster, &node, bridge) == both()).await;
    let begin = Instant::now();
    while !programs(&cluster, &node, wan).is_empty() {
        assert!(begin.elapsed() < LINGER, "programs stay at a device that leads nowhere");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ip(&node, "link del br-lan").await;
    until("no pins of a device that is gone", async || programs(&cluster, &node, bridge).is_empty()).await;
    until("no row of a device that is gone", async || {
        masquerade_rows(&cluster, &node).await.iter().all(|(row, _)| *row != bridge && *row != wan)
    })
    .await;
    assert_eq!(programs(&cluster, &node, eth0), both());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_network_devices_are_touched_when_none_are_wanted() {
    let (cluster, port) = with_node_port(
        Shape::Routed,
        Forwarding::Stack,
        &["--net-devices=none", "--masquerade-ports=2000-2999"],
    )
    .await;
    let node = cluster.node(0).clone();
    assert_eq!(programs(&cluster, &node, index(&node, "eth0").await), BTreeSet::new());
    let outside = Caller::at("outside", cluster.lab().client(0));
    let to = SocketAddr::new(node.addresses()[0], port);
    assert_eq!(outside.connect(to).await.map(drop), Err(NetError::Refused));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_35_node_ports_follow_the_addresses_of_the_node() {
    let (cluster, port) = with_node_port(Shape::Routed, Forwarding::Stack, &[]).await;
    let node = cluster.node(0).clone();
    let client = cluster.lab().client(0);
    let outside = Caller::at("outside", client).within(Duration::from_secs(1));
    let (own, more): (IpAddr, IpAddr) = (node.addresses()[0], "198.51.100.44".parse().unwrap());
    client.add_route("198.51.100.44/32".parse().unwrap(), own).unwrap();
    let at = |address| SocketAddr::new(address, port);
    assert!(outside.hostname(at(own)).await.is_ok());
    assert!(outside.hostname(at(more)).await.is_err(), "nobody's address");
    ip(&node, "addr add 198.51.100.44/32 dev lo").await;
    until("the new address serves", async || outside.hostname(at(more)).await.is_ok()).await;
    // Behind a masquerade the pods see the node.
    assert_eq!(outside.client_ip(at(more)).await.unwrap().ip(), own);
    ip(&node, "addr del 198.51.100.44/32 dev lo").await;
    until("the old address serves no more", async || outside.hostname(at(more)).await.is_err()).await;
    assert!(outside.hostname(at(own)).await.is_ok());
    // The agent's own view of it.
    let root = format!("--bpf-root={}", cluster.bpf_root(&node).display());
    let flow = outside.http_flow(at(own)).await.unwrap();
    flow.get("/hostname").await.unwrap();
    let output = node.agent_command(&["connections", "-o", "json", &root], SECONDS).await.unwrap();
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let client_end = flow.local().unwrap().to_string();
    let mine: Vec<&Value> = rows.iter().filter(|row| row["client"] == client_end.as_str()).collect();
    assert_eq!(mine.len(), 1, "one line a flow: {rows:?}");
    assert_eq!(mine[0]["frontend"], at(own).to_string());
    let masqueraded: SocketAddr = mine[0]["masqueraded_as"].as_str().unwrap().parse().unwrap();
    let seen: SocketAddr = flow.get("/clientip").await.unwrap().parse().unwrap();
    assert_eq!(masqueraded, seen);
    assert_eq!(seen.ip(), own);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_35_s_36_node_ports_are_served_where_the_operator_wants_them() {
    let (own, more): (IpAddr, IpAddr) = ([172, 18, 0, 11].into(), [198, 51, 100, 44].into());
    let localhost: IpAddr = [127, 0, 0, 1].into();
    let cases: [(&str, &[IpAddr], bool); 4] = [
        ("primary", &[own], false),
        ("198.51.100.0/24", &[more], false),
        ("primary,localhost", &[own], true),
        ("localhost", &[], true),
    ];
    for (flag, served, local) in cases {
        let flag = format!("--node-port-addresses={flag}");
        let (cluster, port) = with_node_port(Shape::Routed, Forwarding::Stack, &[&flag]).await;
        let (node, client) = (cluster.node(0).clone(), cluster.lab().client(0));
        assert_eq!(node.addresses()[0], own);
        ip(&node, "addr add 198.51.100.44/32 dev lo").await;
        client.add_route("198.51.100.44/32".parse().unwrap(), own).unwrap();
        let outside = Caller::at("outside", client).within(Duration::from_secs(1));
        for address in [own, more] {
            let to = SocketAddr::new(address, port);
            let wanted = served.contains(&address);
            until(&format!("{flag} at {address}"), async || outside.hostname(to).await.is_ok() == wanted)
                .await;
            if !wanted {
                assert_eq!(outside.connect(to).await.map(drop), Err(NetError::Refused), "{flag} {address}");
            }
        }
        let process = Caller::on_node(&node).unwrap();
        let to = SocketAddr::new(localhost, port);
        assert_eq!(process.hostname(to).await.is_ok(), local, "{flag} at localhost");
    }
}

/// Clients outside notice nothing of agents that end and come again.
async fn replaced(forwarding: Forwarding, arguments: &[&str]) {
    let (mut cluster, port) = with_node_port(Shape::Bridged, forwarding, arguments).await;
    let node = cluster.node(0).clone();
    let own = node.addresses()[0];
    let client = cluster.lab().client(0).clone();
    // Filters leave nothing in a directory that says when they are there.
    until("the first answer", async || http_get(&client, &url(own, port, "/")).await.is_ok()).await;
    let outside = Caller::at("outside", &client);
    let flow = outside.http_flow(SocketAddr::new(own, port)).await.unwrap();
    let (endpoint, source) = (flow.get("/hostname").await.unwrap(), flow.get("/clientip").await.unwrap());
    let load = Load::http(&url(own, port, "/hostname")).interval(Duration::from_millis(3)).start(&client);
    for kill in [true, false] {
        if kill {
            cluster.agent(0).sigkill();
        } else {
            cluster.agent(0).sigterm().await.unwrap();
        }
        load.wait_for(load.report().requests() + 50, SECONDS).await.unwrap();
        cluster.agent(0).restart().unwrap();
        cluster.agent(0).wait_ready().await.unwrap();
        load.wait_for(load.report().requests() + 50, SECONDS).await.unwrap();
        assert_eq!(flow.get("/hostname").await.as_ref(), Ok(&endpoint));
        assert_eq!(flow.get("/clientip").await.as_ref(), Ok(&source), "the same port after all");
    }
    let report = load.stop().await;
    assert!(report.failures.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_outside_do_not_notice_that_agents_are_replaced() {
    replaced(Forwarding::Redirect, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_outside_do_not_notice_that_agents_with_filters_are_replaced() {
    replaced(Forwarding::Stack, &["--attach=tc"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_somebody_takes_off_a_network_device_come_back() {
    let (cluster, port) = with_node_port(Shape::Routed, Forwarding::Stack, &[]).await;
    let node = cluster.node(0).clone();
    let eth0 = index(&node, "eth0").await;
    let outside = Caller::at("outside", cluster.lab().client(0)).within(Duration::from_secs(1));
    let to = SocketAddr::new(node.addresses()[0], port);
    assert!(outside.hostname(to).await.is_ok());
    for program in both() {
        std::fs::remove_file(cluster.bpf_root(&node).join(format!("links/{eth0}-{program}"))).unwrap();
    }
    until("the pins are back", async || programs(&cluster, &node, eth0) == both()).await;
    assert!(outside.hostname(to).await.is_ok());
}

/// Entries in the IPv4 connection table.
async fn entries(cluster: &Cluster, node: &Node) -> usize {
    let path = cluster.bpf_root(node).join("maps/CONNS4").display().to_string();
    let output = node.exec(&["bpftool", "-j", "map", "dump", "pinned", &path], &[], SECONDS).await.unwrap();
    serde_json::from_slice::<Vec<Value>>(&output.stdout).unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_pairs_of_a_masqueraded_flow_end_with_it() {
    let (cluster, port) =
        with_node_port(Shape::Routed, Forwarding::Stack, &["--udp-timeout=10", "--udp-stream-timeout=10"])
            .await;
    let node = cluster.node(0).clone();
    let udp = port_of(&cluster, "udp");
    assert_ne!(udp, port);
    let outside = Caller::at("outside", cluster.lab().client(0));
    let flow = outside.udp(SocketAddr::new(node.addresses()[0], udp)).await.unwrap();
    // For longer than the timeout, with pauses shorter than it.
    let first = flow.ask("clientip").await.unwrap();
    assert_eq!(entries(&cluster, &node).await, 4, "two pairs");
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(flow.ask("clientip").await.as_ref(), Ok(&first));
    }
    assert_eq!(entries(&cluster, &node).await, 4, "a flow that lives keeps its source port");
    let begin = Instant::now();
    while entries(&cluster, &node).await > 0 {
        assert!(begin.elapsed() < Duration::from_secs(30), "entries stay");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn port_of(cluster: &Cluster, name: &str) -> u16 {
    let object = cluster.api().value("services", "default", "web").unwrap();
    let ports = object["spec"]["ports"].as_array().unwrap();
    let port = ports.iter().find(|port| port["name"] == name).unwrap();
    port["nodePort"].as_u64().unwrap() as u16
}
