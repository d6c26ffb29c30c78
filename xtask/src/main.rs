//! The project's tasks: `cargo xtask --help`.

mod compiler;
mod conformance;
mod core_source;
mod differential;
mod ebpf;
mod fuzz;
mod host;
mod image;
mod licences;
mod linker;
mod lint;
mod process;
mod progress;
mod remap;
mod setup;
mod test;
mod tidy;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::host::Profile;
use crate::workspace::Workspace;

/// Builds, checks, tests and shows this project.
///
/// Every task fetches what it lacks, once: the source of `core` and bpf-linker into `target/`, Debian packages for
/// the lab with apt. Afterwards no network is needed.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    after_help = "Environment:\n  \
        CARGO_TARGET_DIR  where host builds go (default: target)\n  \
        LB_RUST_SRC       directory `library` of the Rust source, instead of fetching it\n  \
        LB_EBPF_OBJECT    BPF object the agent embeds, instead of target/bpf/lb-ebpf.o\n  \
        NO_COLOR          no colours, also on a terminal"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Show the datapath at work: two nodes, an API server, agents, and the examples, step by step
    ///
    /// Needs root. All further arguments go to the demo; `cargo xtask demo --help` lists them. The exit code is 0
    /// only if every step held.
    #[command(disable_help_flag = true)]
    Demo {
        /// Build optimised programs first (takes minutes the first time); must come before the demo's arguments
        #[arg(long)]
        release: bool,
        /// Arguments of the demo
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run all tests: units, properties, scenarios, and the lab's
    ///
    /// Needs root for the lab. Ends with the line `N passed, N failed`; failures are listed by name before it. The
    /// exit code is 0 only if something ran and nothing failed.
    Test {
        /// Only tests whose name contains this
        #[arg(long)]
        filter: Option<String>,
    },
    /// Ask of this kernel what Kubernetes' end-to-end tests ask of a Service proxy, title by title
    ///
    /// Needs root. Builds the agent and a cluster of network namespaces for each pod network shape and forwarding mode, runs
    /// every title over real sockets, prints a table, and writes docs/conformance.md. The exit code is 0 only if every title
    /// passed in every variant; none is ever skipped.
    Conformance {
        /// Only runs whose name contains this (`NodePort`, `{routed, stack`); docs/conformance.md is left alone then
        #[arg(long)]
        filter: Option<String>,
        /// What to print at the end
        #[arg(short, long, value_enum, default_value_t)]
        output: conformance::Format,
    },
    /// Measure on this machine, as ratios within one run: `cargo xtask bench packet`, `latency`, …, `all`
    ///
    /// Needs root. All further arguments go to the benchmark; `cargo xtask bench --help` lists them, among them `compare`, which
    /// says what changed between two saved reports. The last report of each lies in target/bench.
    #[command(disable_help_flag = true)]
    Bench {
        /// Arguments of the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run random packets through the programs and through a slow model of them, a million sequences or as many as told
    ///
    /// Needs root. The test suite runs ten thousand. What disagrees is shrunk and printed; the seed makes it come again.
    Differential(differential::Options),
    /// Fuzz the packet logic that programs and agent share, guided by coverage, from the corpus in fuzz/corpus
    ///
    /// The first time this installs cargo-fuzz into target/tools. An input that breaks something is left in target/fuzz/crashes.
    Fuzz(fuzz::Options),
    /// Build the datapath, the agent with it inside, and the lab's programs
    Build {
        /// Optimised
        #[arg(long)]
        release: bool,
    },
    /// Build an OCI image archive of the agent, without a container engine: target/image/lb-agent-VERSION.tar
    ///
    /// A static program on an empty base. `ctr images import`, `docker load` and `kind load image-archive` take the
    /// archive, `skopeo copy oci-archive:FILE docker://…` pushes it. The same commit gives the same bytes.
    Image(image::Options),
    /// Build only the datapath object, target/bpf/lb-ebpf.o, with the stable compiler
    BuildEbpf,
    /// Check what needs no run: tidy, rustfmt, clippy for host and BPF, licences
    Lint {
        /// Run cargo-deny too (bans, licences, sources); installing it takes minutes the first time
        #[arg(long)]
        deny: bool,
    },
    /// Check the rules of the house that no other tool knows (part of lint)
    Tidy,
    /// Make this machine ready for tests and demo, which also do so by themselves
    ///
    /// Installs missing Debian packages (as root), mounts bpffs at /sys/fs/bpf, and says what kernel or privileges lack.
    #[command(after_help = setup::package_table())]
    Setup,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.task) {
        Ok(code) => code,
        Err(error) => {
            progress::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    match task {
        Task::Demo { release, args } => return host::demo(&workspace, Profile::of(release), &args),
        Task::Bench { args } => return host::bench(&workspace, &args),
        Task::Test { filter } => return Ok(test::run(&workspace, filter.as_deref())),
        Task::Conformance { filter, output } => {
            return conformance::run(&workspace, filter.as_deref(), output);
        }
        Task::Differential(options) => return differential::run(&workspace, &options),
        Task::Fuzz(options) => fuzz::run(&workspace, &options)?,
        Task::Build { release } => drop(host::build(&workspace, Profile::of(release))?),
        Task::Image(options) => image::run(&workspace, &options)?,
        Task::BuildEbpf => drop(ebpf::build(&workspace)?),
        Task::Lint { deny } => lint::run(&workspace, deny)?,
        Task::Tidy => tidy::run(&workspace)?,
        Task::Setup => {
            setup::ensure()?;
            progress::note("this machine is ready for tests and demo");
        }
    }
    Ok(ExitCode::SUCCESS)
}
