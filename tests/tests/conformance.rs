//! The conformance suite: what Kubernetes' own end-to-end tests ask of a Service proxy, asked of this one.
//!
//! Each test carries the title of the end-to-end test it reproduces, the suite it stands in, and where it ran:
//! `Services should preserve source pod IP for traffic thru service cluster IP [LinuxOnly] {routed, stack, IPv4}`.
//! `cargo xtask conformance` runs them all and writes `docs/conformance.md`; `cargo xtask test` runs them among the others.
//!
//! # How to write one
//!
//! A module below has `pub(crate) fn groups() -> Vec<Group>`; a [`Group`] is an upstream file, its suite, and its titles:
//!
//! ```ignore
//! Group::new("service.go", "Services", vec![
//!     Title::new("should serve a basic endpoint from pods", basic_endpoint).each_family(),
//! ])
//!
//! async fn basic_endpoint(case: Case) -> Result<()> {
//!     let web = case.service("web", json!({}))?;                  // selects app=web; 80/TCP and 81/UDP
//!     let pod = case.backend("web", 1).await?;                    // a netexec pod with app=web on the second node
//!     let client = case.pod("client", 0).await?;                  // a pod nobody selects, on the first node
//!     case.visible("the endpoint", async || client.hostname(web.cluster(80)?).await, is(pod.name())).await?;
//!     Ok(())
//! }
//! ```
//!
//! - A title runs in all four variants ({routed, bridged} x {stack, redirect}), unless [`Title::once`], and those of a
//!   [`Group::outside`] once more with XDP. It runs with
//!   [`Case::family`] IPv4, unless [`Title::each_family`]. All titles of a variant share one dual-stack cluster of three
//!   nodes (zones `a`, `a`, `b`) and two hosts outside; each has a Kubernetes namespace of its own and removes what it
//!   made. A title that harms agents or API server, or wants other flags, is [`Title::alone`]: it gets a cluster of its own.
//! - Clients ([`lb_tests::lab::Caller`]) come from [`Case::pod`] (a pod's), [`Case::host`] (a process of a node: its network
//!   namespace and its cgroup) and [`Case::outside`] (hosts outside the cluster, with routes to pods, cluster IPs through the
//!   first node, and to the addresses of [`Case::routed_address`] through the node chosen there).
//! - Services are [`Svc`]: [`Case::service`] merges what the title wants into a Service in front of netexec pods;
//!   [`Svc::patch`] changes it, [`Svc::cluster`], [`Svc::node`], [`Svc::at`] are the addresses to ask.
//! - What must become visible goes through [`Case::visible`]: it asks until the answer is the wanted one, notes the time, and
//!   fails after [`LIMIT`]. What must stay: [`Case::stays`]. Which endpoints are chosen: [`Case::comes_to_reach`] for the first
//!   contact of a client (every node learns of a change by itself, so each is waited for), [`Case::reaches`] where nothing has
//!   changed. Who is turned away: [`Case::refuses`], [`Case::silent`], [`Case::unreachable`] (either of the two).
//! - Errors say what was seen instead; a panic is as good as an error. No title may be skipped.

#[path = "conformance/aftermath.rs"]
mod aftermath;
#[path = "conformance/case.rs"]
mod case;
#[path = "conformance/conntrack.rs"]
mod conntrack;
#[path = "conformance/dual_stack.rs"]
mod dual_stack;
#[path = "conformance/extra.rs"]
mod extra;
#[path = "conformance/fixture.rs"]
mod fixture;
#[path = "conformance/loadbalancers.rs"]
mod loadbalancers;
#[path = "conformance/matrix.rs"]
mod matrix;
#[path = "conformance/networking.rs"]
mod networking;
#[path = "conformance/others.rs"]
mod others;
#[path = "conformance/record.rs"]
mod record;
#[path = "conformance/service.rs"]
mod service;
#[path = "conformance/services.rs"]
mod services;
#[path = "conformance/title.rs"]
mod title;

use std::{process::ExitCode, sync::Arc};

use libtest_mimic::Arguments;
use tokio::signal::unix::{SignalKind, signal};

use title::Group;

/// What every title needs.
#[allow(unused_imports, reason = "a module takes what it wants")]
mod prelude {
    pub(crate) use std::{
        net::{IpAddr, SocketAddr},
        time::{Duration, Instant},
    };

    pub(crate) use anyhow::{Context, Result, bail, ensure};
    pub(crate) use lb_tests::{
        lab::{Caller, KubePod, Node, UdpFlow},
        workload::{NetError, UdpKind},
    };
    pub(crate) use serde_json::{Value, json};

    pub(crate) use crate::{
        case::{Case, HostPod, LIMIT, PodClient, any_of, ask, is, netexec, refused, silent},
        fixture::{IpFamily, Variant},
        service::{Protocol, Svc},
        title::{Group, Title},
    };
}

/// How many titles run at a time, unless told otherwise: most of a title's time is spent waiting.
const THREADS: usize = 4;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let groups: Vec<Group> = [
        services::groups(),
        loadbalancers::groups(),
        conntrack::groups(),
        networking::groups(),
        dual_stack::groups(),
        others::groups(),
        extra::groups(),
        matrix::groups(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => Arc::new(runtime),
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.spawn(remove_everything_on_a_signal());
    let trials = title::trials(groups, &runtime);
    let conclusion = libtest_mimic::run(&arguments, trials);
    conclusion.exit_code()
}

/// Ctrl-C and SIGTERM leave nothing behind. (What SIGKILL leaves is removed by the next run.)
async fn remove_everything_on_a_signal() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    let code = tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
    };
    lb_tests::lab::remove_own();
    std::process::exit(code);
}
