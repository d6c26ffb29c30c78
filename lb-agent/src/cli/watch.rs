//! `lb-agent watch`: connections and drops as they happen.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use lb_common::layout::{EventKind, Watch};

use super::show::{self, Opened, Output};
use crate::app;
use crate::apply::TablesView;
use crate::dataplane::{Counters, Events, Pins};
use crate::observe::{EventRow, ServiceFilter};
use crate::options::PinOptions;

/// How often the programs are asked to go on telling, and names of Services read anew.
const RENEWAL: Duration = Duration::from_secs(1);
/// Seconds that they go on when nobody asks any more.
const LEASE: u32 = 3;

/// Flags of `lb-agent watch`.
#[derive(Clone, Debug, Args)]
pub(super) struct WatchOptions {
    #[command(flatten)]
    pins: PinOptions,
    /// Output format; `json` is an object a line
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Only this Service: name, or namespace/name
    #[arg(short, long, value_name = "SERVICE")]
    service: Option<ServiceFilter>,
    /// Only what happened to this address: a client, a frontend or an endpoint
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<IpAddr>,
    /// Only these kinds of events
    #[arg(short, long, value_enum, value_delimiter = ',')]
    kind: Vec<Kind>,
    /// Events a second that the programs tell on each CPU; what is more is counted and left out
    #[arg(long, default_value_t = 1000, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..))]
    rate: u16,
    /// End after so many events
    #[arg(short = 'n', long, value_name = "NUMBER")]
    count: Option<u64>,
    /// End after so many seconds
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
}

/// Kinds of events, as flag values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A connection began
    Opened,
    /// Its endpoint answered
    Answered,
    /// It ended
    Closed,
    /// A packet was refused
    Refused,
    /// A packet was dropped
    Dropped,
}

impl From<Kind> for EventKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Opened => Self::Opened,
            Kind::Answered => Self::Answered,
            Kind::Closed => Self::Closed,
            Kind::Refused => Self::Refused,
            Kind::Dropped => Self::Dropped,
        }
    }
}

/// The bits of the kinds that are wanted; all when none is named.
fn bits(kinds: &[Kind]) -> u8 {
    let named = kinds.iter().map(|kind| EventKind::from(*kind));
    let all = EventKind::ALL.into_iter().filter(|_| kinds.is_empty());
    named.chain(all).fold(0, |bits, kind| bits | 1 << kind as u8)
}

/// The rows of the Service ports that are meant.
fn rows(view: &TablesView, filter: &ServiceFilter) -> BTreeSet<u32> {
    let meant = view.services.iter().filter(|service| filter.matches(service.key.as_ref()));
    meant.map(|service| service.index).collect()
}

struct Watcher<'a> {
    options: &'a WatchOptions,
    opened: &'a Opened,
    events: Events<'a>,
    view: TablesView,
    booted: Timestamp,
    lost: u64,
}

impl Watcher<'_> {
    /// Asks the programs to go on, and says how many events they left out since the last time.
    fn renew(&mut self) -> anyhow::Result<()> {
        self.view = self.opened.view();
        if let Some(filter) = &self.options.service {
            self.events.choose(&rows(&self.view, filter))?;
        }
        let now = Events::now().context("reading the clock")?;
        self.events.ask(Watch {
            until: (now / 1_000_000_000) as u32 + LEASE,
            kinds: bits(&self.options.kind),
            services: self.options.service.is_some(),
            rate: self.options.rate,
        })?;
        let lost = Counters::new(&self.opened.maps)?.events_lost()?;
        if lost > self.lost {
            eprintln!(
                "{} events were left out: more than --rate {} a second on a CPU, or faster than they were read",
                lost - self.lost,
                self.options.rate
            );
            self.lost = lost;
        }
        Ok(())
    }

    /// Prints what lies ready; false when enough was printed.
    fn print(&mut self, left: &mut u64) -> anyhow::Result<bool> {
        while *left > 0 {
            let Some(event) = self.events.take() else { return Ok(true) };
            let Some(row) = EventRow::new(&event, &self.view, self.booted) else { continue };
            if self.options.ip.is_some_and(|ip| !row.has(ip)) {
                continue;
            }
            let mut line = match self.options.output {
                Output::Json => serde_json::to_string(&row).context("writing JSON")?,
                Output::Table => row.line(),
            };
            line.push('\n');
            if !show::write_more(line.as_bytes())? {
                return Ok(false);
            }
            *left -= 1;
        }
        Ok(false)
    }
}

/// Prints events until somebody has seen enough.
pub(super) fn watch(options: &WatchOptions) -> anyhow::Result<()> {
    let opened = Opened::of(&options.pins)?;
    let _only = app::Instance::watching(&options.pins.bpf_root).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            anyhow::anyhow!(
                "another `lb-agent watch` is running for this --bpf-root: there can be one at a time"
            )
        }
        _ => error.into(),
    })?;
    let pins = Pins::new(&options.pins.bpf_root);
    let monotonic = Events::now().context("reading the clock")?;
    let mut watcher = Watcher {
        options,
        events: Events::open(&pins, &opened.maps)?,
        view: TablesView::default(),
        booted: Timestamp::now() - jiff::SignedDuration::from_nanos(monotonic as i64),
        lost: Counters::new(&opened.maps)?.events_lost()?,
        opened: &opened,
    };
    let end = options.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut left = options.count.unwrap_or(u64::MAX);
    watcher.renew()?;
    let mut renewal = Instant::now() + RENEWAL;
    if options.service.as_ref().is_some_and(|filter| rows(&watcher.view, filter).is_empty()) {
        eprintln!("no Service of that name is in the tables; waiting for it");
    }
    while watcher.print(&mut left)? {
        let now = Instant::now();
        if end.is_some_and(|end| now >= end) {
            break;
        }
        if now >= renewal {
            watcher.renew()?;
            renewal = now + RENEWAL;
        }
        let until = end.map_or(renewal, |end| end.min(renewal));
        watcher.events.wait(until.saturating_duration_since(now)).context("waiting for events")?;
    }
    // The programs stop telling at once, not when the lease is over.
    watcher.events.ask(Watch::default()).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kinds_are_told_unless_some_are_named() {
        assert_eq!(bits(&[]), 0b11_1110);
        assert_eq!(bits(&[Kind::Dropped, Kind::Opened]), 1 << 5 | 1 << 1);
        for kind in Kind::value_variants() {
            assert_eq!(kind.to_possible_value().unwrap().get_name(), EventKind::from(*kind).name());
        }
    }
}
