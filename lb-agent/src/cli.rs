//! The command line: flags, commands, exit codes.

mod bundle;
mod explain;
mod live;
mod log;
mod parse;
mod show;
mod status;
mod top;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use crate::app;
use crate::dataplane::{self, Finding, Outcome, Pins};
use crate::options::{LogOptions, ObjectOptions, PinOptions, RunOptions};
use parse::{Parsed, Trouble};
use show::ShowOptions;
use top::TopOptions;
use watch::WatchOptions;

/// Exit code for a command line or configuration that makes no sense (`EX_USAGE` of sysexits.h).
const BAD_CONFIGURATION: u8 = 64;
/// Exit code for everything else that went wrong.
const FAILED: u8 = 1;

/// Kubernetes Services in the Linux kernel: watches Services and EndpointSlices and programs eBPF tables that balance
/// the connections of this node's pods.
#[derive(Debug, Parser)]
#[command(name = "lb-agent", version, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    log: LogOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve this node: load the programs, follow Services and devices, keep the tables
    ///
    /// SIGTERM and SIGINT end the agent and leave every Service working: programs and tables stay in the kernel, and
    /// the next agent goes on with them. `lb-agent cleanup` removes them. A second signal ends it at once.
    Run(Box<RunOptions>),
    /// Remove everything an agent left in the kernel: links, filters, tables. Services stop working
    Cleanup(PinOptions),
    /// Is this node's datapath well? One screen; exit code 0 when it is, 1 when it is not
    ///
    /// Works without a running agent, which is the first thing it says then.
    Status(status::StatusOptions),
    /// Services in the kernel's tables, with their counters
    Services(ShowOptions),
    /// Endpoints in the kernel's tables, with their counters
    Backends(ShowOptions),
    /// Connections in the kernel's tables
    Connections(ShowOptions),
    /// Packets that were dropped or refused, by reason
    Drops(ShowOptions),
    /// Tell what becomes of a packet to a Service, and why: who is asked, which rules apply, which endpoints there are
    ///
    /// A packet is sent through a copy of the programs that serve, which reads the same tables and writes to none of them.
    /// Nothing reaches the network. Works without a running agent.
    Explain(explain::ExplainOptions),
    /// Collect what a bug report needs in a .tar.gz: tables, counters, programs, devices, what the agent tells. No secrets
    SupportBundle(bundle::BundleOptions),
    /// The busiest Services and endpoints, live: rates, handshake latency, errors
    Top(TopOptions),
    /// Connections that begin, are answered and end, and packets refused and dropped, as they happen
    Watch(WatchOptions),
    /// Say whether this kernel and these privileges suffice, and what is missing
    Check(CheckOptions),
    /// Say whether the agent serves all it knows of, by the file of `run --ready-file`: exit code 0 or 1. For probes
    Ready(ReadyOptions),
    /// What can be changed while the agent runs, and what it says now
    Get(live::GetOptions),
    /// Change it, without a restart: `lb-agent set log=debug`. The next agent starts with its flags again
    Set(live::SetOptions),
    /// Say whether the running agent answers and keeps up with changes: exit code 0 or 1. For probes
    Live(live::LiveOptions),
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
struct ReadyOptions {
    /// The file that the agent was told to write; an agent that was killed leaves it until the next one starts
    #[arg(long, env = "LB_AGENT_READY_FILE", value_name = "FILE")]
    ready_file: PathBuf,
}

#[derive(Debug, Args)]
struct CheckOptions {
    #[command(flatten)]
    pins: PinOptions,
    #[command(flatten)]
    object: ObjectOptions,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: show::Output,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let outcome = match parse::parse(std::env::args_os()) {
        Ok(parsed) => execute(parsed),
        Err(Trouble::File(error)) => Err(error),
        Err(Trouble::Usage(error)) => {
            // Nothing is left to say when standard output is closed.
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(BAD_CONFIGURATION) };
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("lb-agent: {error:#}");
        let bad_configuration = error.downcast_ref::<app::BadConfiguration>().is_some();
        ExitCode::from(if bad_configuration { BAD_CONFIGURATION } else { FAILED })
    })
}

fn execute(Parsed { cli, configuration }: Parsed) -> anyhow::Result<ExitCode> {
    let log = log::init(&cli.log).map_err(app::bad_configuration)?;
    match cli.command {
        Command::Run(options) => runtime()?.block_on(app::run(*options, configuration, log))?,
        Command::Cleanup(options) => runtime()?.block_on(cleanup(&options))?,
        Command::Services(options) => show::services(&options)?,
        Command::Backends(options) => show::backends(&options)?,
        Command::Connections(options) => show::connections(&options)?,
        Command::Drops(options) => show::drops(&options)?,
        Command::Status(options) => return runtime()?.block_on(status::status(&options)),
        Command::SupportBundle(options) => runtime()?.block_on(bundle::bundle(&options))?,
        Command::Explain(options) => runtime()?.block_on(explain::explain(&options))?,
        Command::Top(options) => top::top(options)?,
        Command::Watch(options) => watch::watch(&options)?,
        Command::Check(options) => return check(&options),
        Command::Ready(options) => return ready(&options),
        Command::Live(options) => live::live(&options)?,
        Command::Get(options) => live::get(&options)?,
        Command::Set(options) => live::set(&options)?,
        Command::Version => println!("lb-agent {}", env!("CARGO_PKG_VERSION")),
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")
}

async fn cleanup(options: &PinOptions) -> anyhow::Result<()> {
    let pins = Pins::new(&options.bpf_root);
    let _instance = app::Instance::claim(&options.bpf_root)
        .context("an lb-agent is running with this --bpf-root; stop it first, or it puts everything back")?;
    let handle = crate::net::connect().context("opening a netlink socket")?;
    let cleaned = dataplane::cleanup(&pins, &handle).await?;
    if cleaned == dataplane::Cleaned::default() {
        println!("nothing to remove below {}", options.bpf_root.display());
        return Ok(());
    }
    let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    println!(
        "removed the programs from {} (links), {} (filters), {} (XDP) and the cgroup ({}), and {}",
        counted(cleaned.links.len(), "device"),
        counted(cleaned.filters.len(), "device"),
        counted(cleaned.xdp.len(), "device"),
        counted(cleaned.sockets, "link"),
        counted(cleaned.maps.len(), "map"),
    );
    Ok(())
}

fn ready(options: &ReadyOptions) -> anyhow::Result<ExitCode> {
    let path = &options.ready_file;
    let there = path.try_exists().with_context(|| format!("looking for {}", path.display()))?;
    if there {
        println!("ready");
        return Ok(ExitCode::SUCCESS);
    }
    println!("not ready: there is no {}", path.display());
    Ok(ExitCode::from(FAILED))
}

fn check(options: &CheckOptions) -> anyhow::Result<ExitCode> {
    let mut findings = dataplane::probe(&Pins::new(&options.pins.bpf_root), options.object.object.as_deref());
    findings.extend(crate::net::check_sysctls());
    match options.output {
        show::Output::Json => show::json(&findings)?,
        show::Output::Table => print!("{}", report(&findings)),
    }
    let missing = findings.iter().any(|finding| finding.outcome == Outcome::Missing);
    Ok(if missing { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

/// Findings as lines of text, the verdict last.
fn report(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let outcome = match finding.outcome {
            Outcome::Ok => "ok",
            Outcome::Limited => "limited",
            Outcome::Missing => "MISSING",
        };
        text.push_str(&format!("{:width$}  {outcome:7}  {}\n", finding.check, finding.found));
        if let Some(advice) = &finding.advice {
            text.push_str(&format!("{:width$}  {:7}  -> {advice}\n", "", ""));
        }
    }
    let count = |outcome| findings.iter().filter(|finding| finding.outcome == outcome).count();
    text.push_str(&match (count(Outcome::Missing), count(Outcome::Limited)) {
        (0, 0) => "lb-agent can run here.\n".to_owned(),
        (0, limited) => format!("lb-agent can run here, with {limited} limitation(s).\n"),
        (missing, _) => format!("lb-agent cannot run here: {missing} thing(s) missing.\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_run_has_a_variable_and_a_help_text() {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        for argument in run.get_arguments().filter(|argument| argument.get_id() != "help") {
            assert!(argument.get_env().is_some(), "{}", argument.get_id());
            assert!(argument.get_help().is_some(), "{}", argument.get_id());
        }
    }

    #[test]
    fn the_forwarding_flag_warns_of_what_it_bypasses() {
        let mut command = Cli::command();
        let help = command.find_subcommand_mut("run").unwrap().render_long_help().to_string();
        assert!(help.contains("bypass the host's routing and netfilter"), "{help}");
    }

    #[test]
    fn ready_is_who_has_written_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let options = ReadyOptions { ready_file: directory.path().join("ready") };
        assert_eq!(ready(&options).unwrap(), ExitCode::from(FAILED));
        std::fs::write(&options.ready_file, "ready\n").unwrap();
        assert_eq!(ready(&options).unwrap(), ExitCode::SUCCESS);
    }

    #[test]
    fn a_missing_thing_is_the_last_word() {
        let finding =
            |outcome| Finding { check: "x", outcome, found: "y".into(), advice: Some("do z".into()) };
        assert!(report(&[finding(Outcome::Limited)]).ends_with("with 1 limitation(s).\n"));
        let text = report(&[finding(Outcome::Missing), finding(Outcome::Limited)]);
        assert!(
            text.contains("-> do z") && text.ends_with("cannot run here: 1 thing(s) missing.\n"),
            "{text}"
        );
    }
}
