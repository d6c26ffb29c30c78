//! UDP: which endpoint a socket talks to, for how long, and whom it takes for the sender.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use lb_tests::sockets::{Errno, Sockets};
use serde_json::json;

use crate::common::{addresses, agent_json, at, builder, http_hostname, serves, service, with_web};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unconnected_socket_keeps_its_endpoint_while_that_serves() {
    let cluster = with_web(builder(), 4).await;
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    for address in addresses(&cluster, "web") {
        let udp = at(address, 81);
        let socket = process.datagrams(udp).unwrap();
        let (first, _) = socket.ask_at(udp, "hostname").unwrap();
        for _ in 0..30 {
            assert_eq!(socket.ask_at(udp, "hostname"), Ok((first.clone(), udp)), "{address}");
        }
        // Other sockets choose for themselves.
        let others: BTreeSet<String> =
            (0..40).map(|_| process.datagrams(udp).unwrap().ask_at(udp, "hostname").unwrap().0).collect();
        assert_eq!(others.len(), 4, "{address}: {others:?}");

        serves(&cluster, &first, false).await;
        let (second, from) = socket.ask_at(udp, "hostname").unwrap();
        assert_ne!(second, first, "{address}");
        assert_eq!(from, udp);
        serves(&cluster, &first, true).await;
        assert_eq!(socket.ask_at(udp, "hostname"), Ok((second, udp)), "{address}: it stays where it is now");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_that_loses_its_last_endpoint_is_counted_once_and_forgotten() {
    let cluster = with_web(builder(), 1).await;
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    let all = addresses(&cluster, "web");
    let sockets: Vec<_> = all
        .iter()
        .map(|address| {
            let (udp, socket) = (at(*address, 81), process.datagrams(at(*address, 81)).unwrap());
            socket.ask_at(udp, "hostname").unwrap();
            (udp, socket)
        })
        .collect();
    serves(&cluster, "web-0", false).await;
    for (udp, socket) in &sockets {
        for _ in 0..3 {
            assert_eq!(socket.send_to(*udp, "hostname"), Err(Errno::REFUSED));
        }
    }
    let rows = agent_json(&cluster, &["services", "--service", "web"]).await;
    let sum = |field: &str| -> u64 {
        rows.as_array().unwrap().iter().map(|row| row[field].as_u64().unwrap()).sum()
    };
    let flows = all.len() as u64;
    assert_eq!((sum("connections"), sum("reselected"), sum("refused")), (flows, flows, 3 * flows));
    serves(&cluster, "web-0", true).await;
    for (udp, socket) in &sockets {
        assert_eq!(socket.ask_at(*udp, "hostname"), Ok(("web-0".to_owned(), *udp)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_socket_chooses_again_after_the_timeout() {
    let cluster = with_web(builder().agent_args(["--udp-stream-timeout=10"]), 4).await;
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    let udp = at(addresses(&cluster, "web")[0], 81);
    // Ten sockets of four endpoints: that all keep theirs by chance happens once in a million.
    let sockets: Vec<_> = (0..10).map(|_| process.datagrams(udp).unwrap()).collect();
    let ask = || sockets.iter().map(|socket| socket.ask_at(udp, "hostname").unwrap().0).collect::<Vec<_>>();
    let first = ask();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(ask(), first, "6 of 10 seconds");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(ask(), first, "each datagram lets the time begin anew");
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_ne!(ask(), first, "11 seconds of silence");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_services_in_front_of_the_same_pods_are_told_apart_by_one_socket() {
    let cluster = with_web(builder(), 2).await;
    cluster.api().create(&service("other", json!({}))).unwrap();
    cluster.settle("default").await.unwrap();
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    for (one, other) in addresses(&cluster, "web").into_iter().zip(addresses(&cluster, "other")) {
        let (one, other) = (at(one, 81), at(other, 81));
        let mut apart = 0;
        for _ in 0..80 {
            let socket = process.datagrams(one).unwrap();
            socket.send_to(one, "echo one").unwrap();
            socket.send_to(other, "echo other").unwrap();
            let answers = BTreeSet::from([socket.receive_from().unwrap(), socket.receive_from().unwrap()]);
            let expected = BTreeSet::from([("one".to_owned(), one), ("other".to_owned(), other)]);
            apart += usize::from(answers == expected);
        }
        // Each socket draws a few times for an endpoint it does not know yet: once in eight times in vain, so that 70 are
        // expected, and 40 if it drew once. Halfway are four standard deviations for either.
        assert!(apart >= 58, "{one}: told apart {apart} of 80 times");
    }
    // With a single endpoint, who was asked last is taken for the sender.
    serves(&cluster, "web-1", false).await;
    for (one, other) in addresses(&cluster, "web").into_iter().zip(addresses(&cluster, "other")) {
        let (one, other) = (at(one, 81), at(other, 81));
        let socket = process.datagrams(one).unwrap();
        for to in [one, other, other, one, one] {
            assert_eq!(socket.ask_at(to, "hostname"), Ok(("web-0".to_owned(), to)));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_asked_directly_answers_under_its_own_address() {
    let cluster = with_web(builder(), 1).await;
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    let pod = cluster.pod("default", "app=web").unwrap();
    for (ip, service) in pod.addresses().iter().zip(cluster.cluster_ips("default", "web").unwrap()) {
        let (direct, service) = (at(*ip, 8081), at(service, 81));
        assert_eq!(direct.is_ipv4(), service.is_ipv4());
        let socket = process.datagrams(direct).unwrap();
        for to in [direct, service, direct, service] {
            assert_eq!(socket.ask_at(to, "hostname"), Ok(("web-0".to_owned(), to)));
        }
        // A connected one shows whom it is connected to.
        socket.connect(service).unwrap();
        assert_eq!(socket.peer(), Ok(service));
        socket.connect(direct).unwrap();
        assert_eq!(socket.peer(), Ok(direct));
        assert_eq!(socket.ask("hostname"), Ok("web-0".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connected_socket_whose_endpoint_stopped_serving_is_closed_at_once_and_connects_again() {
    let cluster = with_web(builder(), 2).await;
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    let pods = cluster.pods("default", "app=web").unwrap();
    for address in addresses(&cluster, "web") {
        let (http, udp) = (at(address, 80), at(address, 81));
        let stream = process.stream(http).unwrap();
        let stream_to = http_hostname(&stream).unwrap();
        let (mut sockets, mut names) = (Vec::new(), Vec::new());
        // Until both endpoints have some.
        while sockets.len() < 8 || BTreeSet::from_iter(&names).len() < 2 {
            assert!(sockets.len() < 64, "all of them chose {}", names[0]);
            let socket = process.connected(udp).unwrap();
            names.push(socket.ask("hostname").unwrap());
            sockets.push(socket);
        }
        let gone = stream_to.clone();
        let gone_pod = pods.iter().find(|pod| pod.name() == gone).unwrap();
        let pod_address =
            gone_pod.addresses().iter().find(|ip| ip.is_ipv4() == address.to_canonical().is_ipv4());
        // Connected to the endpoint itself, not to the Service: none of our business.
        let direct = process.connected(at(*pod_address.unwrap(), 8081)).unwrap();
        direct.ask("hostname").unwrap();

        let begin = Instant::now();
        let labels = json!({"metadata": {"labels": {"app": null}}});
        cluster.api().patch_value("pods", "default", &gone, &labels).unwrap();
        let stale: Vec<usize> = (0..sockets.len()).filter(|at| names[*at] == gone).collect();
        crate::common::until("the sockets to be closed", || async {
            // Not connected any more: the error of its closing is told first, whoever asks.
            stale.iter().all(|at| sockets[*at].peer().is_err())
        })
        .await;
        let took = begin.elapsed();
        // Some milliseconds; a loaded machine shall not fail.
        assert!(took < Duration::from_secs(2), "closed after {took:?}");
        println!("{address}: closed {took:?} after the object changed");
        for (at, socket) in sockets.iter_mut().enumerate() {
            if !stale.contains(&at) {
                assert_eq!(socket.ask("hostname").as_ref(), Ok(&names[at]), "the others stay");
                continue;
            }
            assert_eq!(socket.receive(), Err(Errno::ABORTED), "what a blocked reader is told");
            assert_eq!(socket.send("hostname"), Err(Errno::NOT_CONNECTED));
            socket.connect(udp).unwrap();
            assert_ne!(socket.ask("hostname"), Ok(gone.clone()));
        }
        assert_eq!(direct.ask("hostname"), Ok(gone.clone()));
        assert_eq!(http_hostname(&stream), Ok(stream_to), "TCP connections stay (S-50)");
        serves(&cluster, &gone, true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_socket_is_left_behind_however_fast_an_endpoint_comes_and_goes() {
    let cluster = with_web(builder(), 2).await;
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    let udp = at(addresses(&cluster, "web")[0], 81);
    let mut sockets = Vec::new();
    for round in 0..60 {
        let labels = json!({"metadata": {"labels": {"app": (round % 2 == 0).then_some("web")}}});
        cluster.api().patch_value("pods", "default", "web-0", &labels).unwrap();
        // The agent is at work while these connect.
        sockets.extend((0..12).map(|_| process.connected(udp).unwrap()));
    }
    serves(&cluster, "web-0", false).await;
    // What was connecting at that very moment is looked at once more.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let connected: Vec<_> = sockets.iter().filter(|socket| socket.peer().is_ok()).collect();
    for socket in &connected {
        assert_eq!(socket.ask("hostname"), Ok("web-1".to_owned()));
    }
    let closed = sockets.len() - connected.len();
    assert!(closed > 50 && connected.len() > 50, "{closed} closed, {} connected", connected.len());
}
