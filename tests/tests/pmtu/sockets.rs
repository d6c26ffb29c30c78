//! Sockets that were given the endpoint when they connected: the kernel does all of it alone, because nothing is translated
//! on the way. What it tells names the endpoint: no program sees an error queue.

use anyhow::{Context as _, Result};
use lb_tests::sockets::Sockets;

use crate::discovery::both_ends_learn;
use crate::errors::refused;
use crate::site::{CLOSED, DATAGRAMS, Plan, Site, at_sites};

fn learns(site: &Site, sockets: &Sockets) -> Result<()> {
    let (at, endpoint) = (site.far.at(DATAGRAMS), site.far.endpoint(DATAGRAMS));
    both_ends_learn(sockets, at, endpoint, &site.far, site.plan.mtu, site.routers())
        .context("the path MTU")?;
    for service in [&site.far, &site.near] {
        refused(sockets, service.at(CLOSED), service.endpoint(CLOSED)).context("a closed port")?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_of_the_node_learn_from_the_kernel_alone() -> Result<()> {
    at_sites(Plan::pairwise(), |site| learns(site, &site.on_node()?)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_are_served_when_they_connect_learn_from_the_kernel_alone() -> Result<()> {
    let plans = Plan::pairwise().map(|plan| Plan { socket_lb: "all", ..plan });
    at_sites(plans, |site| learns(site, &Sockets::in_pod(&site.own.pod)?)).await
}
