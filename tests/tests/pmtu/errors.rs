//! Other errors: closed ports and hops that ran out.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_tests::sockets::{Errno, Sockets, Told};

use crate::site::{CLOSED, DATAGRAMS, Plan, Service, Site, at_sites};

/// A connected socket is told that nobody is there, by the Service; with and without its error queue. `named` is what the
/// kernel calls the address it sent to.
pub(crate) fn refused(from: &Sockets, to: SocketAddr, named: SocketAddr) -> Result<()> {
    for _ in 0..3 {
        let socket = from.connected(to)?;
        socket.send("anybody?")?;
        let answer = socket.receive();
        ensure!(answer == Err(Errno::REFUSED), "{answer:?}");
        let socket = from.connected(to)?;
        socket.make_strict()?;
        socket.send("anybody?")?;
        let told = socket.told().context("nothing was told")?;
        let kind = if to.is_ipv4() { (3, 3) } else { (1, 4) };
        let expected = Told { errno: Errno::REFUSED, kind, mtu: 0, offender: Some(named.ip()), to: named };
        ensure!(told == expected, "expected {expected:?}\n     told {told:?}");
    }
    Ok(())
}

fn closed_ports(site: &Site) -> Result<()> {
    let own = Sockets::in_pod(&site.own.pod)?;
    let refuses = |from: &Sockets, to: SocketAddr| refused(from, to, to);
    refuses(&own, site.far.at(CLOSED)).context("a pod beyond")?;
    refuses(&own, site.near.at(CLOSED)).context("a pod of the same node")?;
    refuses(&own, site.own.at(CLOSED)).context("the client itself")?;
    refuses(&own, site.node_port(&site.far, CLOSED)).context("a pod beyond, through a node port")?;
    refuses(&own, site.node_port(&site.near, CLOSED))
        .context("a pod of the same node, through a node port")?;
    for outside in [site.outside_near(), site.outside_far()] {
        let sockets = Sockets::outside(outside)?;
        for service in [&site.near, &site.far] {
            let what = || format!("{} from {}", service.pod.name(), outside.name());
            refuses(&sockets, site.node_port(service, CLOSED)).with_context(what)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_port_is_refused_by_the_service() -> Result<()> {
    at_sites(Plan::EVERY, closed_ports).await
}

/// An endpoint that answers a client whose socket is closed is told so, by what it takes for the client.
fn gone(from: &Sockets, to: SocketAddr, service: &Service) -> Result<()> {
    let process = Sockets::in_pod(&service.pod)?;
    let server = process.bound(to, DATAGRAMS)?;
    server.make_strict()?;
    let client = from.connected(to)?;
    client.send("hello")?;
    let (_, seen) = server.receive_from()?;
    drop(client);
    server.send_to(seen, "anybody?")?;
    let told = server.told().context("nothing was told")?;
    let kind = if to.is_ipv4() { (3, 3) } else { (1, 4) };
    let expected = Told { errno: Errno::REFUSED, kind, mtu: 0, offender: Some(seen.ip()), to: seen };
    ensure!(told == expected, "expected {expected:?}\n     told {told:?}");
    Ok(())
}

fn closed_sockets(site: &Site) -> Result<()> {
    let own = Sockets::in_pod(&site.own.pod)?;
    gone(&own, site.far.at(DATAGRAMS), &site.far).context("a pod beyond")?;
    gone(&own, site.near.at(DATAGRAMS), &site.near).context("a pod of the same node")?;
    gone(&own, site.own.at(DATAGRAMS), &site.own).context("the client itself")?;
    for outside in [site.outside_near(), site.outside_far()] {
        let sockets = Sockets::outside(outside)?;
        for service in [&site.near, &site.far] {
            let what = || format!("{} from {}", service.pod.name(), outside.name());
            gone(&sockets, site.node_port(service, DATAGRAMS), service).with_context(what)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_hears_of_a_client_that_is_gone() -> Result<()> {
    at_sites(Plan::pairwise(), closed_sockets).await
}

/// What `traceroute` shows: who says that a datagram's hops ran out, by their number, until it arrives.
fn trace(from: &Sockets, to: SocketAddr, arrives: &Sockets, way: &[Option<IpAddr>]) -> Result<()> {
    let server = arrives.bound(to, DATAGRAMS)?;
    for (hops, router) in (1..).zip(way) {
        let socket = from.connected(to)?;
        socket.make_strict()?;
        socket.set_hops(hops)?;
        socket.send(&format!("{hops} hops"))?;
        let told = socket.told().with_context(|| format!("nothing was told after {hops} hops"))?;
        // Time exceeded in transit (RFC 792, RFC 4443 3.3): no route to host, to the application.
        let kind = if to.is_ipv4() { (11, 0) } else { (3, 0) };
        let offender = router.or(told.offender);
        let expected = Told { errno: Errno::HOST_UNREACHABLE, kind, mtu: 0, offender, to };
        ensure!(told == expected, "after {hops} hops\nexpected {expected:?}\n     told {told:?}");
    }
    let socket = from.connected(to)?;
    socket.set_hops(way.len() as u8 + 1)?;
    socket.send("there")?;
    let (text, _) =
        server.receive_from().with_context(|| format!("{} hops are not enough", way.len() + 1))?;
    ensure!(text == "there", "{text}");
    Ok(())
}

fn hops(site: &Site) -> Result<()> {
    let far = Sockets::in_pod(&site.far.pod)?;
    let (first, second) = (site.routers()[0], site.router_seen_through_the_link());
    let [one, two] = site.nodes();
    // The address that the node answers a pod of its own with depends on how the pod is connected; and past its stack the
    // node is no hop.
    let way = [None, Some(first), Some(second), Some(two)];
    let skipped = usize::from(site.plan.forwarding == "redirect");
    let own = Sockets::in_pod(&site.own.pod)?;
    trace(&own, site.far.at(DATAGRAMS), &far, &way[skipped..]).context("a pod, a cluster IP")?;
    let way = [Some(one), Some(first), Some(second), Some(two)];
    let outside = Sockets::outside(site.outside_near())?;
    trace(&outside, site.node_port(&site.far, DATAGRAMS), &far, &way).context("from outside, a node port")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_shows_the_way_to_a_service() -> Result<()> {
    at_sites(Plan::pairwise(), hops).await
}
