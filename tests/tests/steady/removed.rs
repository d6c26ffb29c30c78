//! What agents keep in the kernel is taken away by somebody else.

use std::{fs, time::Duration, time::Instant};

use lb_tests::{
    cluster::{Cluster, Forwarding, url},
    lab::{Family, Node},
    workload::{HttpRequest, Load, http_get},
};
use serde_json::Value;

use crate::common::{PUT_BACK, Site, attached, builder, metric, run, until};
use crate::traffic::Traffic;

async fn map_id(cluster: &Cluster, node: &Node, name: &str) -> u64 {
    let pin = cluster.bpf_root(node).join("maps").join(name);
    let shown = run(node, &format!("bpftool -j map show pinned {}", pin.display())).await;
    serde_json::from_str::<Value>(&shown).unwrap()["id"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_bpf_file_system_is_filled_again_and_the_next_agent_goes_on_with_it() {
    let mut site = Site::start(builder(1, Family::Dual, Forwarding::Stack), 2).await;
    site.warm_up().await;
    let node = site.cluster.node(0).clone();
    let (pins, programs) = (site.pins(&node), attached(&node).await);
    let connections = map_id(&site.cluster, &node, "CONNS4").await;
    let traffic = Traffic::start(&site.ways(), 60, 60).await;
    let repairs = async |at: &str| metric(&node, "lb_program_repairs_total", &format!("at=\"{at}\"")).await;
    assert_eq!((repairs("bpffs").await, repairs("device").await), (0.0, 0.0));
    fs::remove_dir_all(site.cluster.bpf_root(&node)).unwrap();
    let took = until("every pin is back", async || site.pins(&node) == pins).await;
    assert!(took < PUT_BACK, "{took:?}");
    println!("bpf root removed: {} pins are back after {took:.0?}", pins.len());
    assert_eq!(map_id(&site.cluster, &node, "CONNS4").await, connections, "the same table");
    assert_eq!(attached(&node).await, programs);
    let of = |directory: &str| pins.iter().filter(|pin| pin.starts_with(directory)).count() as f64;
    until("they are counted", async || {
        repairs("bpffs").await == of("maps/")
            && repairs("device").await == of("links/")
            && repairs("cgroup").await == of("cgroup/")
    })
    .await;

    site.cluster.agent(0).restart().unwrap();
    site.cluster.agent(0).wait_ready().await.unwrap();
    assert!(site.cluster.agent(0).log().contains("every flow stays where it is"));
    traffic.pulse().await;
    traffic.stop().await.nobody_noticed("bpf root removed, then SIGKILL and a new agent");
}

/// Programs of the client's device are taken off in this way; a connection that is silent meanwhile, and all that begin
/// after the repair, notice nothing.
async fn put_back(forwarding: Forwarding, attach: &str, take: impl AsyncFn(&Site, &Node)) {
    let builder = builder(1, Family::V4, forwarding).agent_args([format!("--attach={attach}")]);
    let site = Site::start(builder, 2).await;
    site.warm_up().await;
    let node = site.cluster.node(0).clone();
    let ip = site.cluster.cluster_ip("default", "web").unwrap();
    let mut stream = HttpRequest::get(&url(ip, 80, "/hostname")).connect(&site.client).await.unwrap();
    let answered = stream.get("/hostname").await.unwrap().text();
    let programs = attached(&node).await;
    // Another client on the node, whose device nobody touches: clients outside.
    let others = Traffic::start(&site.ways()[1..], 20, 40).await;
    let load = Load::http(&url(ip, 80, "/hostname"))
        .interval(Duration::from_millis(5))
        .timeout(Duration::from_millis(500))
        .start(&site.client);
    load.wait_for(20, PUT_BACK).await.unwrap();
    let begin = Instant::now();
    take(&site, &node).await;
    assert_ne!(attached(&node).await, programs);
    until("the programs are back", async || attached(&node).await == programs).await;
    let took = begin.elapsed();
    assert!(took < PUT_BACK, "{took:?}");
    assert!(http_get(&site.client, &url(ip, 80, "/")).await.is_ok());
    assert_eq!(stream.get("/hostname").await.unwrap().text(), answered);
    let failed_by_then = load.report().failures.len();
    load.wait_for(load.report().successes() + 100, 5 * PUT_BACK).await.unwrap();
    let report = load.stop().await;
    // Requests that were under way when the programs came back may fail still.
    let late = report.failures.len() - failed_by_then;
    println!(
        "programs taken off a device ({attach}): back after {took:.0?}, {failed_by_then} of its requests failed meanwhile"
    );
    assert!(late <= 1, "{report}");
    others.pulse().await;
    others.stop().await.nobody_noticed("clients of other devices");
    let counted = metric(&node, "lb_program_repairs_total", "at=\"device\"").await;
    assert!(counted >= 2.0, "{counted}");
    let log = site.cluster.agents()[0].log();
    assert!(log.contains("a program was missing from a device: attached again"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_that_somebody_detaches_are_back_within_a_second() {
    put_back(Forwarding::Stack, "tcx", async |site, node| {
        let (index, _) = site.client_device();
        for program in ["from_pod", "to_pod"] {
            let pin = site.cluster.bpf_root(node).join(format!("links/{index}-{program}"));
            run(node, &format!("bpftool link detach pinned {}", pin.display())).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_whose_qdisc_somebody_removes_are_back_within_a_second() {
    put_back(Forwarding::Redirect, "tc", async |site, node| {
        run(node, &format!("tc qdisc del dev {} clsact", site.client_device().1)).await;
    })
    .await;
}

/// Without the pins of the tables a new agent has to begin with new ones. The old programs serve until these are filled.
async fn lost_tables(attach: &str) {
    let builder = builder(1, Family::V4, Forwarding::Stack).agent_args([format!("--attach={attach}")]);
    let mut site = Site::start(builder, 1).await;
    site.warm_up().await;
    let node = site.cluster.node(0).clone();
    let traffic = Traffic::start(&site.ways(), 0, 100).await;
    site.cluster.agent(0).sigkill();
    fs::remove_dir_all(site.cluster.bpf_root(&node).join("maps")).unwrap();
    traffic.pulse().await;
    // A slow API server: the agent is up long before it knows anything.
    site.cluster.api_server().slow_down(Duration::from_millis(300));
    site.cluster.agent(0).restart().unwrap();
    site.cluster.agent(0).wait_ready().await.unwrap();
    traffic.pulse().await;
    traffic.stop().await.nobody_noticed(&format!("tables removed while no agent ran ({attach})"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_without_its_tables_fills_new_ones_before_the_old_ones_go() {
    lost_tables("tcx").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_without_its_tables_fills_new_ones_before_the_old_filters_go() {
    lost_tables("tc").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bpf_root_that_is_wiped_without_an_agent_ends_service_until_the_next_one() {
    let mut site = Site::start(builder(1, Family::V4, Forwarding::Stack), 1).await;
    site.warm_up().await;
    let node = site.cluster.node(0).clone();
    let programs = attached(&node).await;
    site.cluster.agent(0).sigkill();
    fs::remove_dir_all(site.cluster.bpf_root(&node)).unwrap();
    // Nothing half: the kernel takes the programs away with their links.
    until("no program is attached", async || attached(&node).await.is_empty()).await;
    site.cluster.agent(0).restart().unwrap();
    site.cluster.agent(0).wait_ready().await.unwrap();
    assert_eq!(attached(&node).await, programs);
    site.warm_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_renamed_keeps_its_programs_unless_its_name_says_that_it_is_somebody_elses() {
    let site = Site::start(builder(1, Family::V4, Forwarding::Stack), 2).await;
    site.warm_up().await;
    let node = site.cluster.node(0).clone();
    let (index, name) = site.client_device();
    let programs = attached(&node).await;
    let rename = async |from: &str, to: &str| {
        run(&node, &format!("ip link set dev {from} name {to}")).await;
    };
    let traffic = Traffic::start(&site.ways(), 40, 40).await;
    rename("eth0", "uplink0").await;
    rename(&name, "vethrenamed").await;
    traffic.pulse().await;
    assert_eq!(attached(&node).await, programs);
    traffic.stop().await.nobody_noticed("a pod's and the network device renamed");
    // What is taken off it comes back under the new name.
    let pin = site.cluster.bpf_root(&node).join(format!("links/{index}-from_pod"));
    run(&node, &format!("bpftool link detach pinned {}", pin.display())).await;
    until("the program is back", async || attached(&node).await == programs).await;
    assert!(site.cluster.agents()[0].log().contains("device=\"vethrenamed\""));

    let of_client = async || attached(&node).await.keys().filter(|(device, _)| *device == index).count();
    rename("vethrenamed", "mine0").await;
    until("no pattern matches the name: no programs", async || of_client().await == 0).await;
    rename("mine0", &name).await;
    until("programs again", async || of_client().await == 2).await;
    rename("uplink0", "eth0").await;
    site.warm_up().await;
}
