//! Tells the story of Kubernetes Services in the kernel: builds a small cluster in network namespaces and tries everything
//! a Service promises, step by step.

use std::{io::IsTerminal, process::ExitCode};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use lb_tests::{
    cluster::Forwarding,
    demo::{self, Options, Stage, Teller},
    lab::{self, Family, Shape},
};
use tokio::signal::unix::{SignalKind, signal};

/// A small Kubernetes cluster in network namespaces of this machine, with lb-agent in charge of its Services.
///
/// Builds nodes, pods, an API server and DNS, runs one real lb-agent a node, applies examples/*.yaml, and tells what happens
/// step by step. Everything claimed is checked (✓ or ✗); the exit code is 0 only if all of it held. Takes well under a
/// minute, needs root, touches nothing outside its own namespaces, and removes everything at the end.
#[derive(Debug, Parser)]
#[command(name = "lb-demo", version, max_term_width = 110, after_long_help = AFTER_HELP)]
struct Args {
    /// How many nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=20))]
    nodes: u32,

    /// How the agents hand on translated packets
    #[arg(long, value_enum, default_value_t = ForwardingArg::Stack)]
    forwarding: ForwardingArg,

    /// How pods are connected to their node
    #[arg(long, value_enum, default_value_t = ShapeArg::Routed)]
    shape: ShapeArg,

    /// Which address families exist
    #[arg(long, value_enum, default_value_t = FamilyArg::V4)]
    family: FamilyArg,

    /// Leave the cluster standing at the end, and say how to look around in it; Ctrl-C removes it
    #[arg(long)]
    keep: bool,

    /// Remove what demos and tests that were killed have left behind, and do nothing else
    #[arg(long, conflicts_with = "keep")]
    clean: bool,
}

const AFTER_HELP: &str = "Examples:
  cargo xtask demo                                          two nodes, routed pods, IPv4
  cargo xtask demo --shape bridged --forwarding redirect    pods behind a bridge, past the host's stack
  cargo xtask demo --family v6 --nodes 3                    three nodes, IPv6 only
  cargo xtask demo --keep                                   then look around: ip, curl, kubectl, bpftool, lb-agent

Environment:
  LB_AGENT_BIN   the lb-agent to run (default: the one beside lb-demo)
  NO_COLOR       no colours, also on a terminal
  RUST_LOG       what the lab itself logs to standard error (default: nothing)";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ForwardingArg {
    /// Rewrite, then let the host's stack route: any CNI, netfilter and network policy keep working
    Stack,
    /// Rewrite, then straight to the other pod's device, past the host's stack
    Redirect,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ShapeArg {
    /// As Calico does: a device and a route for every pod
    Routed,
    /// As flannel does: pods are ports of a bridge
    Bridged,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FamilyArg {
    /// IPv4
    V4,
    /// IPv6
    V6,
    /// Both
    Dual,
}

impl Args {
    fn options(&self) -> Options {
        Options {
            nodes: self.nodes,
            forwarding: match self.forwarding {
                ForwardingArg::Stack => Forwarding::Stack,
                ForwardingArg::Redirect => Forwarding::Redirect,
            },
            shape: match self.shape {
                ShapeArg::Routed => Shape::Routed,
                ShapeArg::Bridged => Shape::Bridged,
            },
            family: match self.family {
                FamilyArg::V4 => Family::V4,
                FamilyArg::V6 => Family::V6,
                FamilyArg::Dual => Family::Dual,
            },
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.clean {
        for name in lab::remove_kept() {
            println!("removed {name}");
        }
        return ExitCode::SUCCESS;
    }
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_default_env() {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lb-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let stage = tokio::select! {
            played = demo::play(args.options(), Teller::new()) => played?,
            _ = interrupt.recv() => anyhow::bail!("interrupted; everything is removed"),
            _ = terminate.recv() => anyhow::bail!("terminated; everything is removed"),
        };
        let held = verdict(&stage, args);
        if args.keep {
            look_around(&stage);
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            stage.teller.line("\nremoving the cluster");
        }
        Ok(held)
    })
}

/// The last words, and whether everything held.
fn verdict(stage: &Stage, args: &Args) -> bool {
    let Stage { teller, .. } = stage;
    let elapsed = teller.started().elapsed().as_secs_f64();
    let (checks, steps, failures) = (teller.checks(), teller.steps(), teller.failures());
    if failures.is_empty() {
        let all = format!("All {checks} checks of {steps} steps held, in {elapsed:.1} seconds.");
        teller.line(&format!("\n{}", teller.paint("1;32", &all)));
        if !args.keep {
            teller.line("--keep leaves the cluster standing and says how to look around in it; --help says what else.");
        }
        return true;
    }
    let some = format!("{} of {checks} checks did NOT hold:", failures.len());
    teller.line(&format!("\n{}", teller.paint("1;31", &some)));
    for failure in failures {
        teller.line(&format!("  {failure}"));
    }
    let options = args.options();
    teller.line(&format!(
        "again, with everything left standing (agents' logs included): cargo xtask demo --nodes {} --forwarding {} --shape {} \
         --family {} --keep",
        options.nodes,
        options.forwarding.name(),
        format!("{:?}", args.shape).to_lowercase(),
        format!("{:?}", args.family).to_lowercase(),
    ));
    false
}

/// What can be done in the standing cluster.
fn look_around(stage: &Stage) {
    let Stage { cluster, teller } = stage;
    let agent = lab::agent_binary().map_or_else(|_| "lb-agent".to_owned(), |path| path.display().to_string());
    teller.line("\nThe cluster stands until Ctrl-C is pressed here. From another terminal, as root:\n");
    for node in cluster.lab().nodes() {
        teller.line(&format!(
            "  {} services --bpf-root {}       # or backends, connections, drops; -o json",
            agent,
            cluster.bpf_root(node).display()
        ));
    }
    teller.line("");
    for (namespace, labels, what) in [
        ("snackbar", "component=order", "curl -s http://payment/hostname"),
        ("numbers", "app=web", "getent hosts numbers-api"),
        ("default", "app=users", "curl -s http://auth-service/clientip"),
    ] {
        if let Ok(pod) = cluster.pod(namespace, labels) {
            teller.line(&format!("  ip netns exec {} {what}", pod.as_ref().name()));
        }
    }
    let node = cluster.node(0);
    teller.line(&format!("  ip netns exec {} ip route", node.namespace().name()));
    teller.line(&format!("  ip netns exec {} bpftool net show", node.namespace().name()));
    teller.line(&format!(
        "  ip netns exec {} kubectl --kubeconfig {} get services,endpointslices,pods -A",
        node.namespace().name(),
        cluster.lab().state_dir().join(format!("{}.kubeconfig", node.name())).display()
    ));
    teller.line(&format!("  tail -f {}/*.log", cluster.lab().log_dir().display()));
    teller.line("\nAll namespaces: ip netns list. Should this process be killed, the next run or `cargo xtask demo --clean` tidies up.");
    if !std::io::stdin().is_terminal() {
        teller.line(&format!("(No terminal: end it with kill {}.)", std::process::id()));
    }
}
