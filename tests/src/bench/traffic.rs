//! Clients and servers of benchmarks: processes of their own with plain blocking sockets, each kept on one CPU.
//!
//! A client waits for an [`Order`] on its standard input and answers with a [`Measured`] on its standard output, so that
//! nothing is started while something is measured. Both are the program `lb-traffic`.

pub mod client;
pub mod server;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::datapath::pin_to;
use crate::lab::{Client, Node, Pod, program_beside};

/// The program.
const PROGRAM: &str = "lb-traffic";

/// What a client does, again and again, one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A byte and its answer on one TCP connection (netperf's `TCP_RR`).
    Requests,
    /// A TCP connection, a byte and its answer, the server's end (netperf's `TCP_CRR`).
    Connections,
    /// A datagram and its answer, from one UDP socket (netperf's `UDP_RR`).
    Datagrams,
    /// A UDP socket, a datagram and its answer: every one a new flow, as DNS clients make them.
    NewFlows,
    /// Bytes of one TCP connection, as fast as they are taken.
    Stream,
    /// Datagrams of 1400 bytes, never more under way than the server's socket holds.
    DatagramStream,
}

impl Kind {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "TCP request/response",
            Self::Connections => "TCP connect+request+close",
            Self::Datagrams => "UDP request/response",
            Self::NewFlows => "UDP new flow+request",
            Self::Stream => "TCP bulk",
            Self::DatagramStream => "UDP bulk",
        }
    }
}

/// What a client is to do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Order {
    /// What.
    pub kind: Kind,
    /// To whom.
    pub to: SocketAddr,
    /// How long.
    pub time: Duration,
}

/// What a client measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Transactions a second, or bytes a second.
    pub rate: f64,
    /// Time of a transaction.
    pub whole: Option<Quantiles>,
    /// Time of `connect`, where there is one.
    pub connect: Option<Quantiles>,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// The median.
    pub p50: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
}

impl Quantiles {
    /// Those of some times in nanoseconds; none of nothing.
    pub fn of(mut times: Vec<u32>) -> Option<Self> {
        times.sort_unstable();
        let at = |percent: usize| Some(f64::from(*times.get(times.len() * percent / 100)?) / 1e3);
        Some(Self { p50: at(50)?, p99: at(99)? })
    }
}

/// A client or server; ended when dropped.
pub struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// Where a worker runs.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// In a pod.
    Pod(&'a Pod),
    /// On a node.
    Node(&'a Node),
    /// On a host outside.
    Outside(&'a Client),
}

impl Place<'_> {
    fn command(self, argv: &[&str]) -> Result<Command> {
        match self {
            Self::Pod(pod) => pod.command(argv, &[]),
            Self::Node(node) => node.prepare(argv, &[]),
            Self::Outside(client) => client.command(argv, &[]),
        }
    }
}

impl Worker {
    /// A client on that CPU.
    ///
    /// # Errors
    /// The program `lb-traffic` is missing, or cannot be started.
    pub fn client(place: Place<'_>, cpu: usize) -> Result<Self> {
        Self::start(place, &["client", "--cpu", &cpu.to_string()])
    }

    /// A server on that CPU, at these ports of all addresses. It listens when this returns.
    ///
    /// # Errors
    /// As [`Worker::client`]; a port is taken.
    pub fn server(place: Place<'_>, cpu: usize, ports: &[u16]) -> Result<Self> {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        let mut server =
            Self::start(place, &["server", "--cpu", &cpu.to_string(), "--ports", &ports.join(",")])?;
        ensure!(server.line()?.trim() == "ready", "{PROGRAM} does not listen");
        Ok(server)
    }

    fn start(place: Place<'_>, arguments: &[&str]) -> Result<Self> {
        let program = program_beside(PROGRAM)?;
        let argv: Vec<&str> = std::iter::once(program.as_str()).chain(arguments.iter().copied()).collect();
        let mut command = place.command(&argv)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let input = child.stdin.take().context("no standard input")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { child, input, output })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "{PROGRAM} has ended");
        Ok(line)
    }

    /// Lets a client work, and waits.
    ///
    /// # Errors
    /// A connection failed, or an answer did not come.
    pub fn measure(&mut self, order: Order) -> Result<Measured> {
        let mut line = serde_json::to_string(&order)?;
        line.push('\n');
        self.input.write_all(line.as_bytes()).with_context(|| format!("{PROGRAM} has ended"))?;
        let told: Result<Measured, String> = serde_json::from_str(&self.line()?)?;
        match told {
            Ok(measured) => Ok(measured),
            Err(error) => bail!("{} to {}: {error}", order.kind.name(), order.to),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only for a process that has ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Keeps this thread, and those it makes, on a CPU, ahead of whatever else the machine does there.
fn settle(cpu: usize) {
    pin_to(cpu);
    // SAFETY: both calls read their arguments only. Without the right to them a measurement is noisier, and that is all.
    unsafe {
        let first = libc::sched_param { sched_priority: 1 };
        if libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) != 0 {
            libc::setpriority(libc::PRIO_PROCESS, 0, -20);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Quantiles;

    #[test]
    fn quantiles_are_in_microseconds() {
        let times = (1..=1000).rev().map(|time| time * 1000).collect();
        assert_eq!(Quantiles::of(times), Some(Quantiles { p50: 501.0, p99: 991.0 }));
        assert_eq!(Quantiles::of(Vec::new()), None);
    }
}
