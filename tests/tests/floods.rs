//! Floods and forgeries against Services in the lab: what others do meanwhile does not suffer.
//!
//! One small connection table, ten thousand live connections in it, a Service that is attacked and one that is not.

#[path = "floods/forge.rs"]
mod forge;
#[path = "floods/site.rs"]
mod site;

use std::time::Duration;

use lb_tests::cluster::Forwarding;
use lb_tests::workload::{Flood, Load};

use crate::forge::{Random, Template, malformed};
use crate::site::{LIVE, Site};

/// How long each attack lasts: longer than the agent needs to count once.
const ATTACK: Duration = Duration::from_secs(6);

/// Runs `attack` while clients of another Service open connections and the live ones go on; nobody may notice. Returns
/// what the attack returned.
async fn unnoticed<T>(name: &str, site: &mut Site, attack: impl AsyncFnOnce(&Site) -> T) -> T {
    let before = site.tables();
    let load = Load::http(&site.url("calm")).interval(Duration::from_millis(10)).start(&site.client);
    let going_on = site.keep_asking();
    let result = attack(site).await;
    let rounds = going_on.stop().await;
    let report = load.stop().await;
    site.all_live(name).await;
    let after = site.tables();
    println!(
        "{name}: live connections asked {rounds} times, new ones {}, table {} entries; {}",
        report.requests(),
        site.entries(),
        after.since(&before),
    );
    assert!(report.failures.is_empty() && report.requests() > 20, "{name}: {report}");
    assert!(rounds > LIVE as u64, "{name}: only {rounds} questions");
    result
}

async fn attacks(forwarding: Forwarding) {
    let mut site = Site::new(forwarding).await;
    let (web, udp) = (site.vip("web", 80), site.vip("web", 81));
    let node_port = site.node_port();
    let clean = site.checksum_errors().await;

    // SYNs with random sources, from outside and from a pod at once.
    let (from_pod, to_pod) = site.macs_of_pod();
    let (from_outside, to_node) = site.macs_of_outside().await;
    let before = site.tables();
    let (outside, pod) = unnoticed("SYN flood", &mut site, async |site| {
        let template = Template::tcp(from_outside, to_node, node_port);
        let outside = Flood::start(site.outside(), template.random_sources(1));
        let template = Template::tcp(from_pod, to_pod, web);
        let pod = Flood::start(site.attacker(), template.random_sources(2));
        tokio::time::sleep(ATTACK).await;
        (outside.stop(), pod.stop())
    })
    .await;
    println!("SYN flood: {outside:?} from outside, {pod:?} from a pod (sent, not taken)");
    assert!(outside.0 > 10_000 && pod.0 > 10_000);
    let counted = site.tables().since(&before);
    site.established_live("after the SYN flood").await;
    assert!(counted.recycled > 1_000, "the flood does not overwrite its own flows: {counted}");

    let before = site.tables();
    let sent = unnoticed("UDP spray", &mut site, async |site| {
        let template = Template::udp(from_pod, to_pod, udp);
        let flood = Flood::start(site.attacker(), template.random_sources(3));
        tokio::time::sleep(ATTACK).await;
        flood.stop()
    })
    .await;
    println!("UDP spray: {sent:?} (sent, not taken)");
    site.established_live("after the UDP spray").await;
    assert!(sent.0 > 10_000 && site.tables().since(&before).recycled > 1_000);

    // A scan of every other port: refused, counted, and no state made.
    let (before, flows) = (site.tables(), site.flows_of("web"));
    let scanned = unnoticed("port scan", &mut site, async |site| {
        let (sender, mut template) = (site.attacker(), Template::tcp(from_pod, to_pod, web));
        let mut scanned = 0;
        for port in 1_000..21_000 {
            let frame = template.at_port(site.attacker_address(), port);
            sender.send(frame).expect("a frame");
            scanned += 1;
            if scanned % 500 == 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        scanned
    })
    .await;
    let counted = site.tables().since(&before);
    assert_eq!(counted.dropped("unknown_port"), scanned, "{counted}");
    assert!(site.flows_of("web") <= flows, "a scan makes no entries");
    assert_eq!(site.checksum_errors().await, clean, "somebody got a wrong checksum");

    // Resets, SYNs and FINs with random sequence numbers into every live connection, as either side; ICMP errors too.
    unnoticed("forgeries", &mut site, async |site| site.forge_into_live().await).await;
    assert_eq!(site.checksum_errors().await, clean, "somebody got a wrong checksum");

    // Headers with random bits: whatever becomes of them, nobody else notices.
    let sent = unnoticed("malformed", &mut site, async |site| {
        let mut random = Random::new(4);
        let (mut tcp, mut udp) = (Template::tcp(from_pod, to_pod, web), Template::udp(from_pod, to_pod, udp));
        let flood = Flood::start(site.attacker(), move |number, frame| {
            let template = if number % 2 == 0 { &mut tcp } else { &mut udp };
            malformed(template.next(&mut random), &mut random, frame);
        });
        tokio::time::sleep(ATTACK).await;
        flood.stop()
    })
    .await;
    println!("malformed: {sent:?} (sent, not taken)");
    assert!(sent.0 > 10_000);
    site.agent_is_well();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_on_one_service_harm_nobody_else_stack() {
    attacks(Forwarding::Stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_on_one_service_harm_nobody_else_redirect() {
    attacks(Forwarding::Redirect).await;
}
