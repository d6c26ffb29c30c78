//! What older kernels make of it: programs that cannot choose the error of a call (before 6.1), agents that are not told
//! the cookie of their namespace (before 5.14). Loaded here as there, over the tables of an agent that has ended.

use std::process::Command;

use lb_agent::dataplane::{Cgroup, Datapath, LoadOptions, Pins, Sizes, SocketAttacher, SocketOptions};
use lb_common::layout::{Forwarding, INITIAL_NAMESPACE};
use lb_tests::{
    cluster::Cluster,
    sockets::{Errno, Sockets},
};
use serde_json::json;

use crate::common::{addresses, agent_json, at, builder, http_hostname, serves, with_web};

/// `EPERM`: what a program without a choice makes of a call.
const NOT_PERMITTED: Errno = Errno(libc::EPERM);

/// Puts programs in the place of those that the ended agent of the first node left.
fn replace(cluster: &Cluster, change: impl FnOnce(&mut SocketOptions)) -> (Datapath, SocketAttacher) {
    let node = cluster.node(0);
    let mut sockets = node.namespace().block_on(async { SocketOptions::of_this_node(true, 120) }).unwrap();
    assert!(sockets.errors, "this kernel lets programs choose");
    change(&mut sockets);
    let pins = Pins::new(&cluster.bpf_root(node));
    let options = LoadOptions {
        object: std::env::var_os("LB_EBPF_OBJECT").map(Into::into),
        sizes: Sizes::default(),
        forwarding: Forwarding::Stack,
        log: false,
        masquerade_ports: 1024..=32_767,
        echo_reply: false,
        sockets: Some(sockets),
    };
    let datapath = Datapath::load(&pins, &options).unwrap();
    let mut attacher = SocketAttacher::new(&datapath, &pins, Cgroup::open(node.cgroup()).unwrap()).unwrap();
    attacher.attach().unwrap();
    (datapath, attacher)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_choice_of_errors_processes_are_denied_and_pods_refused_at_their_device() {
    let mut cluster = with_web(builder(), 1).await;
    let client = cluster.netexec_pod("default", "client", cluster.node(0), &json!({})).await.unwrap();
    cluster.api().create(&crate::common::service("empty", json!({"selector": {"app": "none"}}))).unwrap();
    cluster.settle("default").await.unwrap();
    cluster.agent(0).sigkill();
    let _attached = replace(&cluster, |sockets| sockets.errors = false);
    let host = Sockets::on_node(cluster.node(0)).unwrap();
    let pod = Sockets::in_pod(client.pod().unwrap()).unwrap();
    let (full, empty) = (addresses(&cluster, "web"), addresses(&cluster, "empty"));
    for address in &full {
        for process in [&host, &pod] {
            let stream = process.stream(at(*address, 80)).unwrap();
            assert_eq!(http_hostname(&stream), Ok("web-0".to_owned()), "{address}");
            assert_eq!(stream.peer(), Ok(at(*address, 80)));
        }
    }
    for address in &empty {
        for port in [80, 82] {
            assert_eq!(host.stream(at(*address, port)).err(), Some(NOT_PERMITTED), "{address}:{port}");
        }
        let udp = at(*address, 81);
        assert_eq!(host.connected(udp).err(), Some(NOT_PERMITTED));
        assert_eq!(host.datagrams(udp).unwrap().send_to(udp, "x"), Err(NOT_PERMITTED));
    }
    assert_eq!(counts(&cluster).await, (3 * 3, 3), "once a call");
    for address in &empty {
        for port in [80, 82] {
            assert_eq!(pod.stream(at(*address, port)).err(), Some(Errno::REFUSED), "{address}:{port}");
        }
        assert_eq!(
            pod.connected(at(*address, 81)).unwrap().ask("hostname"),
            Err(Errno::REFUSED),
            "{address}"
        );
    }
    // Packets this time, and TCP over IPv6 sends a second one before it believes the refusal.
    assert_eq!(counts(&cluster).await, (3 * 3 + 3 * 2 + 1, 3 + 3 + 1), "once a packet");
}

/// Calls and packets refused for want of an endpoint, and at ports that no Service has.
async fn counts(cluster: &Cluster) -> (u64, u64) {
    let rows = agent_json(cluster, &["drops"]).await;
    let count = |reason: &str| {
        let row = rows.as_array().unwrap().iter().find(|row| row["reason"] == reason);
        row.and_then(|row| row["packets"].as_u64()).unwrap()
    };
    (count("no_endpoint"), count("unknown_port"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_cookie_of_its_namespace_an_agent_serves_the_initial_one() {
    let mut cluster = with_web(builder(), 1).await;
    serves(&cluster, "web-0", false).await;
    let on_node = Sockets::on_node(cluster.node(0)).unwrap();
    // A process of the node's cgroup that stayed in the machine's own network namespace.
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg("echo $$ > \"$0/cgroup.procs\" && exec \"$1\"").arg(cluster.node(0).cgroup());
    let initial = Sockets::start(command.arg(env!("CARGO_BIN_EXE_lb-sockets"))).unwrap();
    let to = at(addresses(&cluster, "web")[0], 80);
    assert_eq!(on_node.stream(to).err(), Some(Errno::REFUSED));
    assert_ne!(initial.stream(to).err(), Some(Errno::REFUSED), "of another namespace");

    cluster.agent(0).sigkill();
    let _attached = replace(&cluster, |sockets| {
        (sockets.namespace, sockets.pods) = (INITIAL_NAMESPACE, false);
    });
    assert_eq!(initial.stream(to).err(), Some(Errno::REFUSED));
    assert_ne!(on_node.stream(to).err(), Some(Errno::REFUSED), "of another namespace");
}
