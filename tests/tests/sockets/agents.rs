//! Agents end and come back, change their mind, or are given no cgroup.

use std::{fs, path::PathBuf};

use lb_tests::{
    cluster::Cluster,
    sockets::{Errno, Sockets},
};

use crate::common::{SECONDS, addresses, at, builder, http_hostname, serves, until, with_web};

/// The programs at the cgroup of the first node, with the numbers of their links.
async fn links(cluster: &Cluster) -> Vec<String> {
    let cgroup = cluster.node(0).cgroup().to_string_lossy().into_owned();
    let shown = cluster.node(0).exec(&["bpftool", "cgroup", "list", &cgroup], &[], SECONDS).await.unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    // ID, AttachType, AttachFlags, Name: the number of the program changes with each agent.
    let mut names: Vec<String> =
        shown.lines().skip(1).filter_map(|line| Some(line.split_whitespace().last()?.to_owned())).collect();
    names.sort();
    names
}

const PROGRAMS: [&str; 9] = [
    "connect4",
    "connect6",
    "getpeername4",
    "getpeername6",
    "recvmsg4",
    "recvmsg6",
    "sendmsg4",
    "sendmsg6",
    "sock_release",
];

fn pins(cluster: &Cluster) -> PathBuf {
    cluster.bpf_root(cluster.node(0)).join("cgroup")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_are_served_while_no_agent_runs_and_keep_their_endpoints_over_restarts() {
    let mut cluster = with_web(builder(), 3).await;
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    let udp = at(addresses(&cluster, "web")[0], 81);
    let http = at(udp.ip(), 80);
    let stream = process.stream(http).unwrap();
    let stream_to = http_hostname(&stream).unwrap();
    let connected = process.connected(udp).unwrap();
    let connected_to = connected.ask("hostname").unwrap();
    let unconnected = process.datagrams(udp).unwrap();
    let (unconnected_to, _) = unconnected.ask_at(udp, "hostname").unwrap();
    assert_eq!(links(&cluster).await, PROGRAMS);

    for round in 0..2 {
        cluster.agent(0).sigkill();
        for phase in ["without agent", "new agent"] {
            assert_eq!(http_hostname(&stream).as_ref(), Ok(&stream_to), "{phase} {round}");
            assert_eq!(stream.peer(), Ok(http), "{phase} {round}");
            assert_eq!(connected.ask("hostname").as_ref(), Ok(&connected_to), "{phase} {round}");
            assert_eq!(connected.peer(), Ok(udp), "{phase} {round}");
            assert_eq!(
                unconnected.ask_at(udp, "hostname"),
                Ok((unconnected_to.clone(), udp)),
                "{phase} {round}"
            );
            http_hostname(&process.stream(http).unwrap()).unwrap();
            if phase == "without agent" {
                cluster.agent(0).restart().unwrap();
                cluster.agent(0).wait_ready().await.unwrap();
            }
            assert_eq!(links(&cluster).await, PROGRAMS, "each program once: {phase} {round}");
        }
    }
    // An endpoint that stops serving while nobody looks: the next agent closes what is left connected to it.
    cluster.agent(0).sigkill();
    let labels = serde_json::json!({"metadata": {"labels": {"app": null}}});
    cluster.api().patch_value("pods", "default", &connected_to, &labels).unwrap();
    cluster.agent(0).restart().unwrap();
    cluster.agent(0).wait_ready().await.unwrap();
    until("the socket to be closed", || async { connected.peer().is_err() }).await;
    assert_eq!(connected.receive(), Err(Errno::ABORTED));
    serves(&cluster, &connected_to, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_takes_away_is_put_back_and_cleanup_takes_everything_away() {
    let mut cluster = with_web(builder(), 1).await;
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    let http = at(addresses(&cluster, "web")[0], 80);
    for program in ["connect4", "getpeername6"] {
        fs::remove_file(pins(&cluster).join(program)).unwrap();
        until("the pin to be put back", || async { pins(&cluster).join(program).exists() }).await;
        assert_eq!(links(&cluster).await, PROGRAMS);
    }
    // Detached, not only unpinned.
    let link = pins(&cluster).join("connect4").to_string_lossy().into_owned();
    let detached =
        cluster.node(0).exec(&["bpftool", "link", "detach", "pinned", &link], &[], SECONDS).await.unwrap();
    assert!(detached.status.success(), "{}", String::from_utf8_lossy(&detached.stderr));
    until("the program to be attached again", || async { links(&cluster).await == PROGRAMS }).await;
    assert_eq!(http_hostname(&process.stream(http).unwrap()), Ok("web-0".to_owned()));
    assert!(cluster.agents()[0].log().contains("missing from the cgroup"));

    cluster.agent(0).sigterm().await.unwrap();
    let root = format!("--bpf-root={}", cluster.bpf_root(cluster.node(0)).display());
    let cleaned = cluster.node(0).agent_command(&["cleanup", &root], SECONDS).await.unwrap();
    let told = String::from_utf8_lossy(&cleaned.stdout).into_owned();
    assert!(cleaned.status.success() && told.contains("9 links"), "{told}");
    assert!(links(&cluster).await.is_empty());
    assert!(!pins(&cluster).exists());
    assert!(process.stream(http).is_err(), "the Service still works");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switched_off_every_socket_is_left_alone_also_those_of_the_agent_before() {
    let mut cluster = with_web(builder(), 1).await;
    assert_eq!(links(&cluster).await, PROGRAMS);
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    let http = at(addresses(&cluster, "web")[0], 80);
    let stream = process.stream(http).unwrap();
    cluster.agent(0).sigterm().await.unwrap();
    let mut options = cluster.agent_options(cluster.node(0)).unwrap();
    options.args.push("--socket-lb=off".to_owned());
    let agent = cluster.node(0).start_agent(options).unwrap();
    agent.wait_ready().await.unwrap();
    assert!(links(&cluster).await.is_empty());
    assert!(process.stream(http).is_err());
    assert_eq!(http_hostname(&stream), Ok("web-0".to_owned()), "what is connected stays connected");
}

/// As in a DaemonSet, which mounts a node's /sys/fs/cgroup whatever its layout is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_directory_of_all_cgroups_leads_to_version_2() {
    let cluster = with_web(builder().agent_args(["--cgroup=/sys/fs/cgroup"]), 1).await;
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" cgroup2 ")).unwrap().split(' ').nth(1).unwrap();
    let log = cluster.agents()[0].log();
    assert!(log.contains(&format!("cgroup=\"{mount}\"")), "{log}");
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    let stream = process.stream(at(addresses(&cluster, "web")[0], 80)).unwrap();
    assert_eq!(http_hostname(&stream), Ok("web-0".to_owned()), "a process below");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cgroup_that_is_none_is_a_wrong_configuration() {
    let cluster = builder().without_agents().start().await.unwrap();
    let mut options = cluster.agent_options(cluster.node(0)).unwrap();
    options.args.push("--cgroup=/proc".to_owned());
    let agent = cluster.node(0).start_agent(options).unwrap();
    let error = agent.wait_ready().await.unwrap_err().to_string();
    assert_eq!(agent.exit_status().and_then(|status| status.code()), Some(64), "{error}");
    assert!(error.contains("--cgroup") && error.contains("--socket-lb off"), "{error}");
}
