//! Node ports, external IPs and load balancer VIPs, and endpoints in the node's own network.

use std::{collections::BTreeSet, net::IpAddr};

use lb_tests::sockets::{Errno, Sockets};
use serde_json::json;

use crate::common::{addresses, at, builder, http_hostname, notations, service, with_web};

const HTTP: u16 = 30_080;
const UDP: u16 = 30_081;

/// A Service with all kinds of frontends.
fn open(name: &str, external: &[IpAddr]) -> serde_json::Value {
    service(
        name,
        json!({
            "type": "LoadBalancer",
            "externalIPs": external,
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080, "nodePort": HTTP},
                {"name": "udp", "port": 81, "targetPort": 8081, "protocol": "UDP", "nodePort": UDP},
            ],
        }),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_of_the_node_reach_every_kind_of_frontend_under_every_notation() {
    let cluster = with_web(builder().nodes(2), 2).await;
    let parse = |text: &str| text.parse::<IpAddr>().unwrap();
    let external = ["198.51.100.80", "2001:db8:80::1"].map(parse);
    let vips = ["198.51.100.81", "2001:db8:81::1"].map(parse);
    cluster.api().create(&open("open", &external)).unwrap();
    let status = json!({"status": {"loadBalancer": {"ingress": vips.map(|ip| json!({"ip": ip}))}}});
    cluster.api().patch_status_value("services", "default", "open", &status).unwrap();
    cluster.settle("default").await.unwrap();

    let process = Sockets::on_node(cluster.node(0)).unwrap();
    let near: Vec<IpAddr> = ["127.0.0.1", "127.8.9.10", "::1"].map(parse).to_vec();
    let nodes: Vec<IpAddr> =
        cluster.lab().nodes().iter().flat_map(|node| node.addresses().to_vec()).collect();
    let own = cluster.node(0).addresses().len();
    let with_ports = |ips: &[IpAddr], http, udp| -> Vec<_> {
        ips.iter().copied().flat_map(notations).map(|ip| (at(ip, http), at(ip, udp))).collect()
    };
    let mut places = with_ports(&near, HTTP, UDP);
    places.extend(with_ports(&nodes[..own], HTTP, UDP));
    places.extend(with_ports(&external, 80, 81));
    places.extend(with_ports(&vips, 80, 81));
    let all = BTreeSet::from(["web-0".to_owned(), "web-1".to_owned()]);
    for (http, udp) in places {
        let mut names = BTreeSet::new();
        for _ in 0..12 {
            let stream = process.stream(http).unwrap_or_else(|error| panic!("{http}: {error}"));
            assert_eq!(stream.peer(), Ok(http));
            names.insert(http_hostname(&stream).unwrap_or_else(|error| panic!("{http}: {error}")));
            let connected = process.connected(udp).unwrap();
            assert_eq!(connected.peer(), Ok(udp));
            names.insert(connected.ask("hostname").unwrap_or_else(|error| panic!("{udp}: {error}")));
            let (name, from) = process.datagrams(udp).unwrap().ask_at(udp, "hostname").unwrap();
            assert_eq!(from, udp);
            names.insert(name);
        }
        assert_eq!(names, all, "{http}");
    }
    // The unspecified address means the own host, for `connect` and for us.
    for (any, shown) in [("0.0.0.0", "127.0.0.1"), ("::", "::1")] {
        let (any, shown) = (at(parse(any), HTTP), at(parse(shown), HTTP));
        let stream = process.stream(any).unwrap();
        assert_eq!(stream.peer(), Ok(shown));
        http_hostname(&stream).unwrap();
        let (any, shown) = (at(any.ip(), UDP), at(shown.ip(), UDP));
        assert_eq!(process.datagrams(any).unwrap().ask_at(any, "hostname").unwrap().1, shown);
    }
    // Other ports of such addresses are not ours.
    for ip in external {
        assert_ne!(process.stream(at(ip, 82)).err(), Some(Errno::REFUSED), "{ip}");
    }
    assert_eq!(process.stream(at(near[0], 82)).err(), Some(Errno::REFUSED), "nobody listens there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn external_policy_local_does_not_bind_processes_of_the_node() {
    let cluster = with_web(builder().nodes(2), 0).await;
    let far = cluster.node(1).clone();
    cluster.netexec_pod("default", "far", &far, &json!({"app": "web"})).await.unwrap();
    let mut object = open("open", &[]);
    object["spec"]["externalTrafficPolicy"] = json!("Local");
    cluster.api().create(&object).unwrap();
    cluster.settle("default").await.unwrap();
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    for ip in cluster.node(0).addresses().iter().copied().flat_map(notations) {
        assert_eq!(http_hostname(&process.stream(at(ip, HTTP)).unwrap()), Ok("far".to_owned()), "{ip}");
        assert_eq!(process.connected(at(ip, UDP)).unwrap().ask("hostname"), Ok("far".to_owned()), "{ip}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_in_the_network_of_the_node_answer_its_processes() {
    let cluster = with_web(builder(), 0).await;
    let spec = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "host", "namespace": "default", "labels": {"app": "web"}},
        "spec": {
            "nodeName": cluster.node(0).name(),
            "hostNetwork": true,
            "containers": [{
                "name": "netexec", "image": "registry.k8s.io/e2e-test-images/agnhost:2.53",
                "args": ["netexec", "--http-port=8080", "--udp-port=8081"],
            }],
        },
    });
    cluster.api().create(&spec).unwrap();
    crate::common::until("the pod to run", || async { cluster.pod("default", "app=web").is_ok() }).await;
    cluster.settle("default").await.unwrap();
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    for address in addresses(&cluster, "web") {
        let (http, udp) = (at(address, 80), at(address, 81));
        crate::common::until("the endpoint in the tables", || async { process.stream(http).is_ok() }).await;
        let stream = process.stream(http).unwrap();
        assert_eq!(http_hostname(&stream), Ok("host".to_owned()), "{address}");
        assert_eq!(stream.peer(), Ok(http));
        let answer = process.datagrams(udp).unwrap().ask_at(udp, "hostname");
        assert_eq!(answer, Ok(("host".to_owned(), udp)));
    }
}
