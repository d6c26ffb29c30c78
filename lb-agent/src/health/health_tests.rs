//! Answers, listeners and failures, over real sockets on the loopback device.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;

fn name(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

fn check(port: u16, local_v4: u32) -> Check {
    Check { created: Some(1), port, local_v4, local_v6: 0 }
}

/// Node ports at the IPv4 loopback address only: that of the test's own host.
fn loopback() -> Arc<NodeAddressing> {
    let localhost: IpAddr = Ipv4Addr::LOCALHOST.into();
    Arc::new(NodeAddressing { node_ports: BTreeSet::from([localhost]), ..NodeAddressing::default() })
}

struct Server {
    health: Health,
    addresses: watch::Sender<Arc<NodeAddressing>>,
    failures: Arc<Mutex<Vec<BindFailure>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    fn start() -> Self {
        let (health, failures) = (Health::default(), Arc::<Mutex<Vec<BindFailure>>>::default());
        let (addresses, receiver) = watch::channel(loopback());
        let told = failures.clone();
        let tell = move |failure: &BindFailure| told.lock().unwrap().push(failure.clone());
        let task = tokio::spawn(HealthServer::new(health.clone(), receiver, tell).run());
        Self { health, addresses, failures, task }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A port that is free now.
async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

async fn ask(port: u16, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

async fn until_answered(port: u16) -> String {
    until("an answer", async || ask(port, "/").await.is_ok()).await;
    ask(port, "/").await.unwrap()
}

#[tokio::test]
async fn s_61_any_path_is_answered_in_the_words_load_balancers_know() {
    let server = Server::start();
    let port = free_port().await;
    server.health.set(&name("web"), Some(check(port, 3)));
    until_answered(port).await;
    for path in ["/", "/healthz", "/any/where?else"] {
        let answer = ask(port, path).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let mut lines = head.lines();
        assert_eq!(lines.next(), Some("HTTP/1.1 200 OK"));
        let headers: Vec<String> = lines.map(str::to_lowercase).collect();
        for header in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 3",
        ] {
            assert!(headers.iter().any(|line| line == header), "{header}: {headers:?}");
        }
        assert_eq!(
            body,
            r#"{"service":{"namespace":"shop","name":"web"},"localEndpoints":3,"serviceProxyHealthy":true}"#
        );
    }
}

#[tokio::test]
async fn s_61_without_local_endpoints_or_with_a_stuck_proxy_the_node_is_no_choice() {
    let server = Server::start();
    let port = free_port().await;
    server.health.set(&name("web"), Some(check(port, 0)));
    let answer = until_answered(port).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains(r#""localEndpoints":0"#), "{answer}");

    // The next answer on the same connection says how it is then.
    server.health.set(&name("web"), Some(check(port, 1)));
    assert!(ask(port, "/").await.unwrap().starts_with("HTTP/1.1 200 "));
    let (web, none) = (name("web"), BTreeSet::new());
    let long_ago = Instant::now().checked_sub(STALE).unwrap();
    let stuck: [fn(&mut Late, Instant); 2] = [
        |late, since| late.applying = Some(since),
        |late, since| {
            late.failing.insert(name("web"), since);
        },
    ];
    for stick in stuck {
        stick(&mut server.health.late(), long_ago);
        // What goes on failing does not begin anew.
        server.health.applying();
        let answer = ask(port, "/").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains(r#""localEndpoints":1,"serviceProxyHealthy":false"#), "{answer}");
        server.health.applied([&web], &none);
        assert!(ask(port, "/").await.unwrap().starts_with("HTTP/1.1 200 "));
    }
    // Another Service that cannot be applied, or this one for a moment, is no reason.
    server.health.late().failing.insert(name("other"), long_ago);
    server.health.applied([&web], &BTreeSet::from([&web]));
    assert!(ask(port, "/").await.unwrap().starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn listeners_come_move_and_go_with_their_services() {
    let server = Server::start();
    let (first, second) = (free_port().await, free_port().await);
    server.health.set(&name("web"), Some(check(first, 1)));
    until_answered(first).await;
    server.health.set(&name("web"), Some(check(second, 1)));
    until_answered(second).await;
    assert!(ask(first, "/").await.is_err(), "the old port is closed");
    server.addresses.send_replace(Arc::default());
    until("closed without addresses", async || ask(second, "/").await.is_err()).await;
    server.addresses.send_replace(loopback());
    until_answered(second).await;
    server.health.retain(&BTreeSet::new());
    until("closed without Services", async || ask(second, "/").await.is_err()).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_once_and_opened_when_it_is_free() {
    let server = Server::start();
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = other.local_addr().unwrap().port();
    server.health.set(&name("web"), Some(check(port, 1)));
    until("the failure is told", async || !server.failures.lock().unwrap().is_empty()).await;
    tokio::time::sleep(BIND_AGAIN + Duration::from_millis(500)).await;
    {
        let failures = server.failures.lock().unwrap();
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert_eq!(failures[0].service, name("web"));
        assert!(failures[0].note.contains(&port.to_string()), "{failures:?}");
    }
    drop(other);
    assert!(until_answered(port).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn of_two_services_with_one_port_the_older_one_has_it() {
    let server = Server::start();
    let port = free_port().await;
    server.health.set(&name("a"), Some(Check { created: Some(2), ..check(port, 1) }));
    assert!(until_answered(port).await.contains(r#""name":"a""#));
    server.health.set(&name("b"), Some(Check { created: Some(1), ..check(port, 1) }));
    until("b has it", async || ask(port, "/").await.is_ok_and(|text| text.contains(r#""name":"b""#))).await;
    assert_eq!(server.failures.lock().unwrap()[0].service, name("a"));
    server.health.set(&name("b"), None);
    until("a has it again", async || ask(port, "/").await.is_ok_and(|text| text.contains(r#""name":"a""#)))
        .await;
}

#[tokio::test]
async fn a_burst_of_clients_and_silent_ones_do_not_keep_others_from_an_answer() {
    let server = Server::start();
    let port = free_port().await;
    server.health.set(&name("web"), Some(check(port, 1)));
    until_answered(port).await;
    let mut silent = Vec::new();
    for _ in 0..crate::serve::CONNECTIONS / 2 {
        silent.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    }
    let asking: Vec<_> = (0..500).map(|_| tokio::spawn(async move { ask(port, "/").await })).collect();
    for answer in asking {
        let answer = timeout(Duration::from_secs(20), answer).await.unwrap().unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[test]
fn a_family_served_everywhere_has_one_listener_for_all_its_addresses() {
    let text = |set: &BTreeSet<IpAddr>| set.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ");
    let parse = |addresses: &[&str]| addresses.iter().map(|address| address.parse().unwrap()).collect();
    let mut addresses = NodeAddressing {
        node_ports: parse(&["192.0.2.1", "2001:db8::1", "fe80::1"]),
        ..NodeAddressing::default()
    };
    assert_eq!(text(&targets(&addresses)), "192.0.2.1 2001:db8::1");
    addresses.node_ports_at_all.v6 = true;
    assert_eq!(text(&targets(&addresses)), "192.0.2.1 ::");
    addresses.node_ports_at_all.v4 = true;
    assert_eq!(text(&targets(&addresses)), "0.0.0.0 ::");
}
