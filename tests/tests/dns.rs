//! The name server, asked by hickory's resolver and by hand, over loopback.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, RecordType},
};
use lb_tests::{
    apiserver::{ControlPlane, Options},
    dns,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

struct Cluster {
    server: ControlPlane,
    address: SocketAddr,
    _dns: dns::DnsServer,
}

fn slice(service: &str, family: &str, endpoints: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "generateName": format!("{service}-"), "namespace": "snackbar",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    })
}

fn cluster() -> Cluster {
    let server = ControlPlane::start(Options::default()).unwrap();
    server
        .api()
        .apply_yaml(
            r"
apiVersion: v1
kind: Namespace
metadata: {name: snackbar}
---
apiVersion: v1
kind: Service
metadata: {name: order, namespace: snackbar}
spec:
  clusterIP: 10.96.0.20
  selector: {app: order}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: dual, namespace: snackbar}
spec: {ipFamilyPolicy: RequireDualStack, clusterIP: 10.96.0.21, clusterIPs: [10.96.0.21, 'fd00:96::21'], ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: snackbar}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: many, namespace: snackbar}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: snackbar}
spec: {clusterIP: None, selector: {app: none}}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: snackbar}
spec: {type: ExternalName, externalName: db.example.com}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: snackbar}
spec: {type: ExternalName, externalName: order.snackbar.svc.cluster.local}
",
        )
        .unwrap();
    let endpoints = json!([
        {"addresses": ["10.244.1.2"], "conditions": {"ready": true}, "hostname": "db-0"},
        {"addresses": ["10.244.1.3"], "conditions": {}},
        {"addresses": ["10.244.1.4"], "conditions": {"ready": false}},
    ]);
    server.api().create(&slice("db", "IPv4", endpoints)).unwrap();
    let endpoints =
        json!([{"addresses": ["fd00:10:244::2"], "conditions": {"ready": true}, "hostname": "db-0"}]);
    server.api().create(&slice("db", "IPv6", endpoints)).unwrap();
    let many: Vec<Value> = (1..=100).map(|host| json!({"addresses": [format!("10.244.2.{host}")]})).collect();
    server.api().create(&slice("many", "IPv4", many.into())).unwrap();

    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).unwrap();
    let outside = [("db.example.com".to_owned(), vec![IpAddr::from([203, 0, 113, 7])])].into();
    let dns = dns::serve(udp, tcp, server.api(), dns::Options { outside }).unwrap();
    Cluster { server, address, _dns: dns }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut query = Query::query(Name::from_ascii(name).unwrap(), kind);
    query.query_class = DNSClass::IN;
    message.queries.push(query);
    message
}

async fn ask_udp(cluster: &Cluster, name: &str, kind: RecordType) -> Message {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&question(name, kind).to_vec().unwrap(), cluster.address).await.unwrap();
    let mut answer = vec![0; 4096];
    let length = timeout(Duration::from_secs(5), socket.recv(&mut answer)).await.unwrap().unwrap();
    assert!(length <= 512, "without EDNS an answer has at most 512 bytes, not {length}");
    Message::from_vec(&answer[..length]).unwrap()
}

async fn ask_tcp(cluster: &Cluster, name: &str, kind: RecordType) -> Message {
    let question = question(name, kind).to_vec().unwrap();
    let mut stream = TcpStream::connect(cluster.address).await.unwrap();
    stream.write_u16(question.len().try_into().unwrap()).await.unwrap();
    stream.write_all(&question).await.unwrap();
    let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

/// The answers as sorted text.
fn texts(message: &Message) -> Vec<String> {
    let mut texts: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
    texts.sort();
    texts
}

#[tokio::test]
async fn names_of_the_specification() {
    let cluster = cluster();
    let svc = |name: &str| format!("{name}.snackbar.svc.cluster.local.");
    for (name, kind, expected) in [
        (svc("order"), RecordType::A, vec!["10.96.0.20"]),
        (svc("ORDER"), RecordType::A, vec!["10.96.0.20"]),
        (svc("dual"), RecordType::A, vec!["10.96.0.21"]),
        (svc("dual"), RecordType::AAAA, vec!["fd00:96::21"]),
        (svc("_http._tcp.order"), RecordType::SRV, vec!["0 100 80 order.snackbar.svc.cluster.local."]),
        (svc("_dns._udp.order"), RecordType::SRV, vec!["0 100 53 order.snackbar.svc.cluster.local."]),
        (svc("db"), RecordType::A, vec!["10.244.1.2", "10.244.1.3"]),
        (svc("db"), RecordType::AAAA, vec!["fd00:10:244::2"]),
        (svc("db-0.db"), RecordType::A, vec!["10.244.1.2"]),
        (svc("db-0.db"), RecordType::AAAA, vec!["fd00:10:244::2"]),
        (svc("10-244-1-3.db"), RecordType::A, vec!["10.244.1.3"]),
        (
            svc("_http._tcp.db"),
            RecordType::SRV,
            vec![
                "0 100 8080 10-244-1-3.db.snackbar.svc.cluster.local.",
                "0 100 8080 db-0.db.snackbar.svc.cluster.local.",
            ],
        ),
        (svc("outside"), RecordType::A, vec!["203.0.113.7", "db.example.com."]),
        (svc("outside"), RecordType::CNAME, vec!["db.example.com."]),
        (svc("alias"), RecordType::A, vec!["10.96.0.20", "order.snackbar.svc.cluster.local."]),
        ("20.0.96.10.in-addr.arpa.".to_owned(), RecordType::PTR, vec!["order.snackbar.svc.cluster.local."]),
        ("2.1.244.10.in-addr.arpa.".to_owned(), RecordType::PTR, vec!["db-0.db.snackbar.svc.cluster.local."]),
        (
            "1.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.".to_owned(),
            RecordType::PTR,
            vec!["dual.snackbar.svc.cluster.local."],
        ),
        ("dns-version.cluster.local.".to_owned(), RecordType::TXT, vec!["1.1.0"]),
        ("10-244-1-2.snackbar.pod.cluster.local.".to_owned(), RecordType::A, vec!["10.244.1.2"]),
        ("kubernetes.default.svc.cluster.local.".to_owned(), RecordType::A, vec!["10.96.0.1"]),
    ] {
        let answer = ask_udp(&cluster, &name, kind).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{name}");
        assert!(answer.metadata.authoritative, "{name}");
        assert_eq!(texts(&answer), expected, "{name} {kind}");
        assert!(answer.answers.iter().all(|record| record.ttl == dns::TTL));
    }
    let answer = ask_udp(&cluster, &svc("_http._tcp.db"), RecordType::SRV).await;
    assert_eq!(answer.additionals.len(), 3, "the addresses of both targets come along");
}

#[tokio::test]
async fn no_such_name_and_no_such_type_differ() {
    let cluster = cluster();
    for (name, kind, code) in [
        ("order.snackbar.svc.cluster.local.", RecordType::AAAA, ResponseCode::NoError),
        ("order.snackbar.svc.cluster.local.", RecordType::MX, ResponseCode::NoError),
        ("_tcp.order.snackbar.svc.cluster.local.", RecordType::A, ResponseCode::NoError),
        ("snackbar.svc.cluster.local.", RecordType::A, ResponseCode::NoError),
        ("svc.cluster.local.", RecordType::A, ResponseCode::NoError),
        ("none.snackbar.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
        ("order.none.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
        ("none.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
        ("empty.snackbar.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
        ("10-244-1-4.db.snackbar.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
        ("_none._tcp.order.snackbar.svc.cluster.local.", RecordType::SRV, ResponseCode::NXDomain),
        ("3.1.244.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain),
    ] {
        let answer = ask_udp(&cluster, name, kind).await;
        assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
        assert!(answer.answers.is_empty(), "{name} {kind}");
        let soa = answer.authorities.first().map(|record| record.record_type());
        assert_eq!(soa, Some(RecordType::SOA), "{name}: how long to remember that there is nothing");
    }
    let answer = ask_udp(&cluster, "www.example.com.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert!(!answer.metadata.authoritative);
}

#[tokio::test]
async fn what_does_not_fit_is_truncated_and_asked_again_over_tcp() {
    let cluster = cluster();
    let name = "many.snackbar.svc.cluster.local.";
    let answer = ask_udp(&cluster, name, RecordType::A).await;
    assert!(answer.metadata.truncation);
    let answer = ask_tcp(&cluster, name, RecordType::A).await;
    assert!(!answer.metadata.truncation);
    assert_eq!(answer.answers.len(), 100);
    let firsts: std::collections::HashSet<String> = {
        let mut firsts = std::collections::HashSet::new();
        for _ in 0..20 {
            firsts.insert(ask_tcp(&cluster, name, RecordType::A).await.answers[0].data.to_string());
        }
        firsts
    };
    assert!(firsts.len() > 10, "the first address is another one every time: {firsts:?}");
}

#[tokio::test]
async fn answers_are_of_this_moment() {
    let cluster = cluster();
    let name = "fresh.snackbar.svc.cluster.local.";
    assert_eq!(ask_udp(&cluster, name, RecordType::A).await.metadata.response_code, ResponseCode::NXDomain);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "fresh", "namespace": "snackbar"},
        "spec": {"clusterIP": "10.96.0.99", "ports": [{"port": 80}]},
    });
    cluster.server.api().create(&service).unwrap();
    assert_eq!(texts(&ask_udp(&cluster, name, RecordType::A).await), ["10.96.0.99"]);
}

#[tokio::test]
async fn a_resolver_with_a_pods_resolv_conf() {
    use hickory_resolver::{
        TokioResolver,
        config::{ConnectionConfig, NameServerConfig, ProtocolConfig},
        net::runtime::TokioRuntimeProvider,
        system_conf::parse_resolv_conf,
    };
    let cluster = cluster();
    let text = dns::resolv_conf("snackbar", cluster.address.ip());
    let (config, options) = parse_resolv_conf(&text).unwrap();
    assert_eq!(options.ndots, 5);
    // The same search list, with the port of this server.
    let connection = |protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = cluster.address.port();
        connection
    };
    let server = NameServerConfig::new(
        cluster.address.ip(),
        true,
        vec![connection(ProtocolConfig::Udp), connection(ProtocolConfig::Tcp)],
    );
    let config =
        hickory_resolver::config::ResolverConfig::from_parts(None, config.search().to_vec(), vec![server]);
    let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .unwrap();
    for name in ["order", "order.snackbar", "order.snackbar.svc", "order.snackbar.svc.cluster.local"] {
        let found: Vec<IpAddr> = resolver.lookup_ip(name).await.unwrap().iter().collect();
        assert_eq!(found, [IpAddr::from([10, 96, 0, 20])], "{name}");
    }
    let many = resolver.lookup_ip("many").await.unwrap();
    assert_eq!(many.iter().count(), 100, "a truncated answer is asked for again over TCP");
    let srv = resolver.srv_lookup("_http._tcp.order.snackbar.svc.cluster.local").await.unwrap();
    let ports: Vec<u16> = srv
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(srv.port),
            _ => None,
        })
        .collect();
    assert_eq!(ports, [80]);
    assert!(resolver.lookup_ip("none").await.is_err());
}
