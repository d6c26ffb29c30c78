//! Cluster IPs: who answers, what the application is shown, and what refusals look like.

use std::collections::BTreeSet;

use lb_tests::sockets::Sockets;

use crate::common::{addresses, at, builder, http_hostname, with_web};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_of_the_node_talks_to_the_service_and_never_sees_the_endpoint() {
    let cluster = with_web(builder(), 3).await;
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    for address in addresses(&cluster, "web") {
        let (http, udp) = (at(address, 80), at(address, 81));
        let mut names = BTreeSet::new();
        for _ in 0..40 {
            let stream = process.stream(http).unwrap();
            assert_eq!(stream.peer(), Ok(http));
            names.insert(http_hostname(&stream).unwrap());

            let connected = process.connected(udp).unwrap();
            assert_eq!(connected.peer(), Ok(udp));
            let name = connected.ask("hostname").unwrap();
            assert_eq!(
                connected.ask_at(udp, "hostname"),
                Ok((name.clone(), udp)),
                "sendto on a connected socket"
            );
            names.insert(name);

            let unconnected = process.datagrams(udp).unwrap();
            let (name, from) = unconnected.ask_at(udp, "hostname").unwrap();
            assert_eq!(from, udp);
            names.insert(name);
        }
        let all: BTreeSet<String> = (0..3).map(|number| format!("web-{number}")).collect();
        assert_eq!(names, all, "{address}");
    }
}
