//! A client or server of a benchmark, see `lb_tests::bench::traffic`.

use clap::Parser;
use lb_tests::bench::traffic::{client, server};

/// Traffic for benchmarks, which start this by themselves
#[derive(Parser)]
enum Role {
    /// Work off orders on standard input, one JSON object a line
    Client {
        /// Stay on this CPU
        #[arg(long)]
        cpu: usize,
    },
    /// Serve TCP and UDP until standard input ends
    Server {
        /// Stay on this CPU
        #[arg(long)]
        cpu: usize,
        /// At these ports
        #[arg(long, value_delimiter = ',')]
        ports: Vec<u16>,
    },
}

fn main() -> anyhow::Result<()> {
    match Role::parse() {
        Role::Client { cpu } => client::run(cpu),
        Role::Server { cpu, ports } => server::run(cpu, &ports),
    }
}
