//! Slices that somebody writes by hand, for Services without selector.

use crate::{case::netexec, prelude::*};

/// The titles.
pub(super) fn titles() -> Vec<Title> {
    vec![
        Title::new(
            "should support a Service with multiple ports specified in multiple EndpointSlices",
            ports,
        )
        .each_family(),
        Title::new(
            "should support a Service with multiple endpoint IPs specified in multiple EndpointSlices",
            addresses,
        )
        .each_family(),
    ]
}

async fn callers(case: &Case) -> Result<Vec<Caller>> {
    Ok(vec![case.pod("pause-pod", 0).await?.caller().clone(), case.host(2), case.outside(0)])
}

async fn ports(case: Case) -> Result<()> {
    let service = case.service("web", json!({"selector": null, "ports": [
        {"name": "portname1", "port": 80, "protocol": "TCP"}, {"name": "portname2", "port": 81, "protocol": "TCP"},
    ]}))?;
    // Two servers in one network, as upstream's two containers.
    let containers = json!([
        merged(netexec(&["--http-port=3000", "--udp-port=-1"]), "first"),
        merged(netexec(&["--http-port=3001", "--udp-port=3002"]), "second"),
    ]);
    let spec = json!({"containers": containers});
    let pod = case.pod_with("pod1", 1, json!({"pod": "1"}), spec.clone()).await?;
    let other = case.pod_with("pod2", 2, json!({"pod": "2"}), spec).await?;
    let slice = |name: &str, port_name: &str, number: u16, pod: &PodClient| {
        let ports = json!([{"name": port_name, "port": number, "protocol": "TCP"}]);
        case.slice(name, "web", ports, json!([{"addresses": [pod.ip()]}]))
    };
    slice("first", "portname1", 3000, &pod)?;
    slice("second", "portname2", 3001, &other)?;
    let callers = callers(&case).await?;
    for caller in &callers {
        case.comes_to_reach(caller, service.cluster(80)?, Protocol::Tcp, &[pod.name()]).await?;
        case.comes_to_reach(caller, service.cluster(81)?, Protocol::Tcp, &[other.name()]).await?;
    }
    // One port of the Service with one number in one slice, and another number in the other (S-11).
    slice("second", "portname1", 3001, &other)?;
    for caller in &callers {
        case.comes_to_reach(caller, service.cluster(80)?, Protocol::Tcp, &[pod.name(), other.name()]).await?;
        case.refuses(caller, service.cluster(81)?, Protocol::Tcp).await?;
    }
    Ok(())
}

fn merged(mut container: Value, name: &str) -> Value {
    container["name"] = name.into();
    container
}

async fn addresses(case: Case) -> Result<()> {
    let service = case.service("web", json!({"selector": null}))?;
    let pods = [case.pod("pod1", 0).await?, case.pod("pod2", 1).await?, case.pod("pod3", 2).await?];
    let ports = json!([
        {"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "udp", "port": 8081, "protocol": "UDP"},
    ]);
    let slice = |name: &str, pods: &[&PodClient]| {
        let endpoints: Vec<Value> = pods.iter().map(|pod| json!({"addresses": [pod.ip()]})).collect();
        case.slice(name, "web", ports.clone(), endpoints.into())
    };
    slice("first", &[&pods[0]])?;
    slice("second", &[&pods[1], &pods[2]])?;
    let names = pods.each_ref().map(PodClient::name);
    let callers = callers(&case).await?;
    let both = [(80, Protocol::Tcp), (81, Protocol::Udp)];
    for caller in &callers {
        for (port, protocol) in both {
            case.comes_to_reach(caller, service.cluster(port)?, protocol, &names).await?;
        }
    }
    // An endpoint moves from slice to slice and is never away (S-13).
    slice("first", &[&pods[0], &pods[1]])?;
    slice("second", &[&pods[2]])?;
    for caller in &callers {
        case.reaches(caller, service.cluster(80)?, Protocol::Tcp, &names).await?;
    }
    slice("second", &[])?;
    for caller in &callers {
        for (port, protocol) in both {
            case.comes_to_reach(caller, service.cluster(port)?, protocol, &names[..2]).await?;
        }
    }
    Ok(())
}
