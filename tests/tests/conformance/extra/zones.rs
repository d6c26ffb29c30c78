//! A node's zone changes at run time, and so do hints.

use crate::prelude::*;

/// The titles.
pub(super) fn titles() -> Vec<Title> {
    vec![
        Title::new("should follow a zone label that its node loses and gains at run time", zone_changes)
            .once()
            .each_family()
            .alone(|builder| builder),
    ]
}

async fn zone_changes(case: Case) -> Result<()> {
    let service = case.service("web", json!({"selector": null}))?;
    let (first, second) = (case.pod("first", 0).await?, case.pod("second", 2).await?);
    let both = [first.name(), second.name()];
    let to = service.cluster(80)?;
    let endpoints = |hints: [Option<&str>; 2]| {
        let entry = |pod: &PodClient, node: usize, hint: Option<&str>| {
            let mut endpoint = json!({"addresses": [pod.ip()], "nodeName": case.node(node).name()});
            if let Some(hint) = hint {
                endpoint["hints"] = json!({"forZones": [{"name": hint}]});
            }
            endpoint
        };
        let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
        case.slice("by-hand", "web", ports, json!([entry(&first, 0, hints[0]), entry(&second, 2, hints[1])]))
    };
    let zone = |node: usize, zone: Value| {
        let patch = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}});
        case.api().patch_value("nodes", "", case.node(node).name(), &patch).map(drop)
    };
    // Nodes 0 and 1 are in zone a, node 2 is in zone b.
    let clients = [case.pod("client-0", 0).await?, case.pod("client-2", 2).await?];
    let expect = async |wanted: [&[&str]; 2]| {
        for ((client, node), servers) in clients.iter().zip([0, 2]).zip(wanted) {
            for caller in [client.caller(), &case.host(node)] {
                case.comes_to_reach(caller, to, Protocol::Tcp, servers).await?;
                case.stays("the zone", 10, async || caller.hostname(to).await, any_of(servers)).await?;
            }
        }
        anyhow::Ok(())
    };
    let (near, far): (&[&str], &[&str]) = (&both[..1], &both[1..]);
    endpoints([Some("a"), Some("b")])?;
    expect([near, far]).await?;
    // No zone: hints for zones mean nothing there, and everything elsewhere.
    zone(2, Value::Null)?;
    expect([near, &both]).await?;
    zone(2, "a".into())?;
    expect([near, near]).await?;
    // A zone that no hint names.
    zone(2, "c".into())?;
    expect([near, &both]).await?;
    // The hints follow.
    endpoints([Some("a"), Some("c")])?;
    expect([near, far]).await?;
    zone(0, Value::Null)?;
    zone(2, Value::Null)?;
    expect([&both, &both]).await?;
    zone(0, "c".into())?;
    zone(2, "a".into())?;
    expect([far, near]).await?;
    endpoints([Some("a"), None])?;
    expect([&both, &both]).await
}
