//! Sockets that were given the endpoint when they connected: the kernel does all of it alone, because nothing is translated
//! on the way. What it tells names the endpoint: no program sees an error queue.

use anyhow::{Context as _, Result};
use lb_tests::sockets::Sockets;

use crate::discovery::both_ends_learn;
use crate::errors::refused;
use crate::site::{CLOSED, DATAGRAMS, Plan, Site, at_site, plans};

fn learns(site: &Site, sockets: &Sockets) -> Result<()> {
    let (at, endpoint) = (site.far.at(DATAGRAMS), site.far.endpoint(DATAGRAMS));
    both_ends_learn(sockets, at, endpoint, &site.far, site.plan.mtu, site.routers())
        .context("the path MTU")?;
    for service in [&site.far, &site.near] {
        refused(sockets, service.at(CLOSED), service.endpoint(CLOSED)).context("a closed port")?;
    }
    Ok(())
}

async fn processes_of_the_node(plan: Plan) -> Result<()> {
    at_site(plan, |site| learns(site, &site.on_node()?)).await
}

async fn pods_on_request(plan: Plan) -> Result<()> {
    let plan = Plan { socket_lb: "all", ..plan };
    at_site(plan, |site| learns(site, &Sockets::in_pod(&site.own.pod)?)).await
}

plans! {
    processes_of_the_node;
    processes_routed_stack_v4: Routed, V4, "stack", 1400;
    processes_bridged_redirect_v6: Bridged, V6, "redirect", 1280;
}

plans! {
    pods_on_request;
    pods_routed_stack_v6: Routed, V6, "stack", 1280;
    pods_bridged_redirect_v4: Bridged, V4, "redirect", 1400;
}
