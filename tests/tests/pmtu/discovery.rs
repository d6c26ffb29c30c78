//! Path MTU discovery through a Service: what a router on the way tells reaches the sender, whichever end it is and whatever
//! was translated in between, with the MTU as the router said it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_tests::netns::Namespace;
use lb_tests::sockets::{Errno, Socket, Sockets, Told};
use lb_tests::workload::{Bulk, Direction};

use crate::site::{BULK, DATAGRAMS, LIMIT, Plan, Service, Site, WIDE, at_sites};

/// Bytes of a transfer: some hundred segments.
const BYTES: u64 = 1 << 20;

/// Bytes in front of a datagram's payload.
fn headers(like: SocketAddr) -> u32 {
    if like.is_ipv4() { 28 } else { 48 }
}

/// What a router says of a packet that is too big: type and code (RFC 1191, RFC 4443 3.2).
fn too_big(like: SocketAddr) -> (u8, u8) {
    if like.is_ipv4() { (3, 4) } else { (2, 0) }
}

/// Sends with a connected socket, or to an address with one that is not.
fn send(socket: &Socket<'_>, to: Option<SocketAddr>, bytes: u32) -> Result<(), Errno> {
    let text = "x".repeat(bytes as usize);
    to.map_or_else(|| socket.send(&text), |to| socket.send_to(to, &text))
}

/// One that sends datagrams of a size that the way does not take learns the size that it does take, from that router if it
/// matters who says so.
fn learns(
    socket: &Socket<'_>,
    to: Option<SocketAddr>,
    named: SocketAddr,
    mtu: u32,
    router: Option<IpAddr>,
) -> Result<()> {
    let full = WIDE - headers(named);
    // Nobody has said anything yet.
    send(socket, to, full).context("the first large datagram")?;
    let told = socket.told().context("nothing was told about a datagram that is too big")?;
    let offender = router.or(told.offender);
    let expected = Told { errno: Errno::TOO_LONG, kind: too_big(named), mtu, offender, to: named };
    ensure!(told == expected, "expected {expected:?}\n     told {told:?}");
    // The kernel knows now, and says so at once.
    ensure!(send(socket, to, full) == Err(Errno::TOO_LONG), "sent although it is known to be too big");
    let told = socket.told()?;
    ensure!((told.errno, told.mtu, told.offender) == (Errno::TOO_LONG, mtu, None), "{told:?}");
    send(socket, to, mtu - headers(named)).context("a datagram that fits")?;
    Ok(())
}

/// Both ends of a conversation send datagrams that are too big for the way, and learn of it. The two routers are those that
/// say so of requests and of answers; `named` is what the client's kernel calls the address it sent to.
pub(crate) fn both_ends_learn(
    from: &Sockets,
    to: SocketAddr,
    named: SocketAddr,
    service: &Service,
    mtu: u32,
    [requests, answers]: [IpAddr; 2],
) -> Result<()> {
    let process = Sockets::in_pod(&service.pod)?;
    let server = process.bound(to, DATAGRAMS)?;
    let client = from.connected(to)?;
    server.make_strict()?;
    client.make_strict()?;
    let fits = (mtu - headers(to)) as usize;
    client.send("hello")?;
    let (text, seen) = server.receive_from().context("the first datagram")?;
    ensure!(text == "hello", "{text}");
    ensure!(client.mtu()? == WIDE, "the client knows the path MTU already");
    learns(&client, None, named, mtu, Some(requests)).context("requests")?;
    ensure!(client.mtu()? == mtu, "the client does not know the path MTU");
    let (text, again) = server.receive_from().context("a request that fits")?;
    ensure!((text.len(), again) == (fits, seen), "{} bytes from {again}, {seen} before", text.len());
    learns(&server, Some(seen), seen, mtu, Some(answers)).context("answers")?;
    let answer = client.receive().context("an answer that fits")?;
    ensure!(answer.len() == fits, "{} bytes", answer.len());
    Ok(())
}

fn datagrams(site: &Site) -> Result<()> {
    let mtu = site.plan.mtu;
    let [near, far] = site.routers();
    let own = Sockets::in_pod(&site.own.pod)?;
    let to = site.far.at(DATAGRAMS);
    both_ends_learn(&own, to, to, &site.far, mtu, [near, far])
        .context("a pod, a cluster IP, a pod beyond")?;
    let to = site.node_port(&site.far, DATAGRAMS);
    let outside = Sockets::outside(site.outside_near())?;
    both_ends_learn(&outside, to, to, &site.far, mtu, [near, far])
        .context("from outside, a node port, a pod beyond")?;
    let to = site.node_port(&site.near, DATAGRAMS);
    let outside = Sockets::outside(site.outside_far())?;
    both_ends_learn(&outside, to, to, &site.near, mtu, [far, near])
        .context("from outside beyond, a node port, a pod")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_that_size_their_datagrams_learn_the_path_mtu() -> Result<()> {
    at_sites(Plan::EVERY, datagrams).await
}

/// Transfers in both directions, and what the ends know afterwards of the way: they got there because they learned. `at` gives
/// the address of the Service in front of an endpoint's port.
async fn transfers(
    site: &Site,
    namespace: &Namespace,
    from: &Sockets,
    at: impl Fn(u16) -> SocketAddr,
    service: &Service,
) -> Result<()> {
    let _bulk = Bulk::start(&service.pod, BULK).await?;
    // Who the server sees: the way there it has to know.
    let process = Sockets::in_pod(&service.pod)?;
    let server = process.bound(at(BULK), DATAGRAMS)?;
    from.connected(at(DATAGRAMS))?.send("hello")?;
    let (_, seen) = server.receive_from()?;
    for direction in [Direction::Upload, Direction::Download] {
        // An end that knows of the narrow link asks the other one for short segments.
        site.forget_path_mtus().await?;
        let socket = match direction {
            Direction::Upload => from.connected(at(BULK))?,
            Direction::Download => process.connected(seen)?,
        };
        let before = socket.mtu()?;
        let report = Bulk::transfer(namespace, at(BULK), direction, BYTES, 7, LIMIT)
            .await
            .with_context(|| format!("{direction:?}"))?;
        ensure!(report.bytes == BYTES, "{} bytes", report.bytes);
        let after = socket.mtu()?;
        ensure!((before, after) == (WIDE, site.plan.mtu), "{direction:?}: path MTU {before}, then {after}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_transfers_get_through() -> Result<()> {
    for plan in Plan::EVERY {
        large_transfers(plan).await.with_context(|| format!("{plan:?}"))?;
    }
    Ok(())
}

async fn large_transfers(plan: Plan) -> Result<()> {
    let site = Site::new(plan).await?;
    let own = Sockets::in_pod(&site.own.pod)?;
    transfers(&site, site.own.pod.namespace(), &own, |port| site.far.at(port), &site.far)
        .await
        .context("a pod, a cluster IP, a pod beyond")?;
    for (outside, service) in [(site.outside_near(), &site.far), (site.outside_far(), &site.near)] {
        let sockets = Sockets::outside(outside)?;
        transfers(&site, outside.namespace(), &sockets, |port| site.node_port(service, port), service)
            .await
            .with_context(|| format!("from outside, a node port, {}", service.pod.name()))?;
    }
    site.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pod_sends_has_to_fit_the_nodes_own_device() -> Result<()> {
    for plan in Plan::EVERY {
        narrow_card(plan).await.with_context(|| format!("{plan:?}"))?;
    }
    Ok(())
}

/// The node itself is the router, and its own network device takes less than the pods' do.
async fn narrow_card(plan: Plan) -> Result<()> {
    let card = plan.mtu;
    let site = Site::new(Plan { mtu: WIDE, card, ..plan }).await?;
    let own = Sockets::in_pod(&site.own.pod)?;
    let _bulk = Bulk::start(&site.far.pod, BULK).await?;
    let socket = own.connected(site.far.at(BULK))?;
    ensure!(socket.mtu()? == WIDE, "known before anything was sent");
    let (namespace, to) = (site.own.pod.namespace(), site.far.at(BULK));
    Bulk::transfer(namespace, to, Direction::Upload, BYTES, 7, LIMIT).await.context("an upload")?;
    ensure!(socket.mtu()? == card, "the upload got through, and nobody knows why");
    site.forget_path_mtus().await?;
    let client = own.connected(site.far.at(DATAGRAMS))?;
    client.make_strict()?;
    learns(&client, None, site.far.at(DATAGRAMS), card, None)?;
    site.stop().await
}
