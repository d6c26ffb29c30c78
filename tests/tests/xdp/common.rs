//! What the kernel says of a device, and a node whose devices are like cards.

use std::{
    collections::BTreeSet,
    future::Future,
    path::Path,
    time::{Duration, Instant},
};

use lb_agent::dataplane::{Pins, XdpLink, XdpPlace, xdp_links};
use lb_common::layout::WireDevices;
use lb_tests::{
    cluster::{Cluster, ClusterBuilder, Forwarding},
    lab::{AgentHandle, Family, Node, Shape},
};
use serde_json::Value;

/// Longer than anything here takes, shorter than anybody's patience.
pub(crate) const SECONDS: Duration = Duration::from_secs(30);
/// Index of `eth0` on every node.
pub(crate) const ETH0: u32 = 2;

/// One node, one client outside, no name server.
pub(crate) fn builder(family: Family, forwarding: Forwarding, xdp: &str) -> ClusterBuilder {
    Cluster::builder()
        .nodes(1)
        .clients(1)
        .family(family)
        .shape(Shape::Routed)
        .forwarding(forwarding)
        .cards()
        .without_dns()
        .agent_args([format!("--xdp={xdp}")])
}

/// Runs a program on a node; it has to succeed.
pub(crate) async fn run(node: &Node, line: &str) -> String {
    let argv: Vec<&str> = line.split(' ').collect();
    let output = node.exec(&argv, &[], SECONDS).await.unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn json(node: &Node, line: &str) -> Value {
    let text = run(node, line).await;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
}

/// Where the kernel runs an XDP program at a device, and the program's id.
pub(crate) async fn kernel(node: &Node, device: &str) -> Option<(XdpPlace, u64)> {
    let links = json(node, &format!("ip -j link show dev {device}")).await;
    let xdp = links[0].get("xdp")?;
    // XDP_ATTACHED_DRV and XDP_ATTACHED_SKB, include/uapi/linux/if_link.h.
    let place = match xdp["mode"].as_u64() {
        Some(1) => XdpPlace::Native,
        Some(2) => XdpPlace::Generic,
        other => panic!("mode {other:?} of {xdp}"),
    };
    Some((place, xdp["prog"]["id"].as_u64().unwrap()))
}

/// Where the kernel runs the program at `eth0`.
pub(crate) async fn place(node: &Node) -> Option<XdpPlace> {
    kernel(node, "eth0").await.map(|(place, _)| place)
}

/// What the pins of an agent say.
pub(crate) fn pinned(root: &Path) -> Vec<XdpLink> {
    xdp_links(&Pins::new(root)).unwrap()
}

/// Keys of the map that tells the program at `eth0` which devices take frames.
pub(crate) async fn targets(node: &Node) -> BTreeSet<u32> {
    let (_, program) = kernel(node, "eth0").await.expect("a program at eth0");
    let program = json(node, &format!("bpftool -j prog show id {program}")).await;
    for map in program["map_ids"].as_array().unwrap() {
        if json(node, &format!("bpftool -j map show id {map}")).await["name"] == "XDP_DEVICES" {
            let rows = json(node, &format!("bpftool -j map dump id {map}")).await;
            return rows.as_array().unwrap().iter().map(|row| number(&row["key"])).collect();
        }
    }
    panic!("the program has no map of devices: {program}");
}

/// A number as bpftool prints its bytes.
fn number(bytes: &Value) -> u32 {
    let byte = |text: &Value| {
        u8::from_str_radix(text.as_str().unwrap().trim_start_matches("0x"), 16).expect("a byte")
    };
    let bytes: Vec<u8> = bytes.as_array().unwrap().iter().map(byte).collect();
    u32::from_ne_bytes(bytes.try_into().unwrap())
}

/// Whether frames may leave by `eth0`: handed to it, and as it is an end of a virtual pair, sent back by itself only in the
/// receive path.
pub(crate) fn leave_by_eth0(targets: &BTreeSet<u32>, place: XdpPlace) -> bool {
    let back = targets.contains(&WireDevices::back(ETH0));
    targets.contains(&ETH0) && back == (place == XdpPlace::Generic)
}

/// Turns a knob of a running agent.
pub(crate) async fn set(agent: &AgentHandle, change: &str) {
    let directory = format!("--run-dir={}", agent.run_dir().display());
    let output = agent.node().agent_command(&["set", change, &directory], SECONDS).await.unwrap();
    assert!(output.status.success(), "{change}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until something asynchronous holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let begin = Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < SECONDS, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
