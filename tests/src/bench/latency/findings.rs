//! From what clients measured to rows of the report.

use crate::bench::balancer::{Balancer, Forwarding};
use crate::bench::report::{Row, ratios};
use crate::bench::stand::From;
use crate::bench::traffic::{Kind, Measured};

/// A client's doing through a balancer.
pub(super) struct Case {
    pub(super) from: From,
    pub(super) kind: Kind,
    balancer: Balancer,
    /// Place of the balancer among those that stand.
    pub(super) entrant: usize,
    /// Whether clients connect to the server itself although there is a Service: what programs and rules cost traffic that is
    /// none of theirs.
    pub(super) past: bool,
    /// One a round.
    pub(super) measured: Vec<Measured>,
}

/// A figure of a measurement.
type Figure = fn(&Measured) -> f64;

const RATE: Figure = |measured| measured.rate;
const P50: Figure = |measured| measured.whole.map_or(f64::NAN, |times| times.p50);
const P99: Figure = |measured| measured.whole.map_or(f64::NAN, |times| times.p99);
const CONNECT: Figure = |measured| measured.connect.map_or(f64::NAN, |times| times.p50);

impl Case {
    pub(super) fn new(from: From, kind: Kind, balancer: Balancer, entrant: usize) -> Self {
        Self { from, kind, balancer, entrant, past: false, measured: Vec::new() }
    }

    /// The same with clients that connect to the server itself.
    pub(super) fn past(self) -> Self {
        Self { past: true, ..self }
    }

    /// Its name in the report.
    pub(super) fn name(&self) -> String {
        // The second node without one shows what nodes differ by.
        let again = if self.entrant == 1 { ", again" } else { "" };
        let (from, kind) = (self.from, self.kind.name());
        match self.way() {
            Way::Past => format!("{from}, {kind}: to the pod itself beside {}", self.balancer),
            Way::AtConnect => format!("{from}, {kind}: at connect, {}", self.balancer.count()),
            _ => format!("{from}, {kind}: {}{again}", self.balancer),
        }
    }

    fn way(&self) -> Way {
        match (self.from, self.balancer) {
            _ if self.past => Way::Past,
            (_, Balancer::None) => Way::None,
            (_, Balancer::Iptables(_)) => Way::Iptables,
            (_, Balancer::Nftables(_)) => Way::Nftables,
            (From::Node, Balancer::Agent(..)) | (_, Balancer::Sockets(_)) => Way::AtConnect,
            (From::Pod, Balancer::Agent(Forwarding::Stack, _)) => Way::Stack,
            (From::Pod, Balancer::Agent(Forwarding::Redirect, _)) => Way::Redirect,
        }
    }

    fn figures(&self, figure: Figure) -> Vec<f64> {
        self.measured.iter().map(figure).collect()
    }

    /// What connecting takes longer than it takes in another case.
    fn connects_later_than(&self, other: &Self) -> Vec<f64> {
        self.figures(CONNECT).iter().zip(other.figures(CONNECT)).map(|(own, other)| own - other).collect()
    }
}

/// How a client is served.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    None,
    Past,
    Iptables,
    Nftables,
    Stack,
    Redirect,
    AtConnect,
}

impl Way {
    fn is_ours(self) -> bool {
        matches!(self, Self::Stack | Self::Redirect | Self::AtConnect)
    }
}

/// All rows, of cases in groups whose first one is that without a load balancer.
pub(super) fn rows(cases: &[Case]) -> Vec<Row> {
    let mut rows = Vec::new();
    for group in cases.chunk_by(|one, next| (one.from, one.kind) == (next.from, next.kind)) {
        rows.extend(group.iter().map(|case| rate(case, &group[0])));
    }
    for group in cases.chunk_by(|one, next| (one.from, one.kind) == (next.from, next.kind)) {
        let group = Group { cases: group };
        match group.cases[0].kind {
            Kind::Connections => group.connections(&mut rows),
            Kind::Requests => group.requests(&mut rows),
            _ => {}
        }
    }
    rows
}

/// The rate of a case, beside that without a load balancer.
fn rate(case: &Case, direct: &Case) -> Row {
    let mut row = Row::new(case.name(), "/s", &case.figures(RATE))
        .higher_is_better()
        .ratios("no load balancer", &ratios(&case.figures(RATE), &direct.figures(RATE)));
    let goal = match (case.way(), case.kind) {
        (Way::Redirect, Kind::Requests) => Some("S7"),
        (Way::Redirect, Kind::Datagrams) => Some("S8"),
        (Way::Redirect, Kind::Connections) => Some("S9"),
        _ => None,
    };
    if let Some(goal) = goal {
        row = row.goal(goal);
    }
    if case.kind == Kind::Requests && case.way().is_ours() {
        row = row.goal("S5/rate");
    }
    row
}

/// Cases from one place, of one kind.
struct Group<'c> {
    cases: &'c [Case],
}

impl Group<'_> {
    fn ours(&self) -> impl Iterator<Item = &Case> {
        self.cases.iter().filter(|case| case.way().is_ours())
    }

    /// The case of that way and number of Services.
    fn find(&self, way: Way, services: u32) -> Option<&Case> {
        self.cases.iter().find(|case| case.way() == way && case.balancer.services() == services)
    }

    /// Latency on a standing connection.
    fn requests(&self, rows: &mut Vec<Row>) {
        let direct = self.cases[0].figures(P50);
        for case in self.ours() {
            let own = case.figures(P50);
            rows.push(
                Row::new(format!("{}, p50", case.name()), "us", &own)
                    .ratios("no load balancer", &ratios(&own, &direct))
                    .goal("S5/latency"),
            );
        }
    }

    /// What short connections cost.
    fn connections(&self, rows: &mut Vec<Row>) {
        let direct = &self.cases[0];
        for (figure, name) in [(P50, "p50"), (P99, "p99")] {
            rows.extend(self.cases.iter().map(|case| {
                let own = case.figures(figure);
                Row::new(format!("{}, {name}", case.name()), "us", &own)
                    .ratios("no load balancer", &ratios(&own, &direct.figures(figure)))
            }));
        }
        for case in &self.cases[1..] {
            let later = case.connects_later_than(direct);
            let mut row = Row::new(format!("{}, connect later by", case.name()), "us", &later);
            match case.way() {
                Way::AtConnect => row = row.goal("S1/overhead"),
                Way::Stack | Way::Redirect => row = row.goal("S2/overhead"),
                _ => {}
            }
            if let Some(nftables) =
                self.find(Way::Nftables, case.balancer.services()).filter(|_| case.way().is_ours())
            {
                let goal = if case.way() == Way::AtConnect { "S1/nftables" } else { "S2/nftables" };
                let theirs = nftables.connects_later_than(direct);
                row = row.ratios("later by nftables", &ratios(&later, &theirs)).goal(goal);
            }
            rows.push(row);
        }
        self.flat(rows);
        self.against_iptables(rows);
    }

    /// What ten thousand Services add to one.
    fn flat(&self, rows: &mut Vec<Row>) {
        let few = self.ours().filter(|case| case.way() == Way::AtConnect && case.balancer.services() == 1);
        for few in few {
            let most = self
                .ours()
                .filter(|case| case.way() == few.way())
                .max_by_key(|case| case.balancer.services());
            if let Some(many) = most.filter(|many| many.balancer.services() > 1) {
                let name = format!("{}, connect later than with 1 Service by", many.name());
                rows.push(Row::new(name, "us", &many.connects_later_than(few)).goal("S1/flat"));
            }
        }
    }

    fn against_iptables(&self, rows: &mut Vec<Row>) {
        for case in self.ours() {
            let services = case.balancer.services();
            let Some(theirs) = self.find(Way::Iptables, services) else { continue };
            let (to, name) = (theirs.balancer.to_string(), case.name());
            let rates = ratios(&case.figures(RATE), &theirs.figures(RATE));
            let mut row = Row::new(format!("{name}, against iptables"), "/s", &case.figures(RATE))
                .higher_is_better()
                .ratios(&to, &rates);
            match services {
                1 => row = row.goal("S3"),
                10_000 => row = row.goal("S4"),
                _ => {}
            }
            if services == 1 && case.way() == Way::Stack {
                row = row.goal("S11");
            }
            let slowest = Row::new(format!("{name}, p99 against iptables"), "us", &case.figures(P99));
            let slowest = slowest.ratios(&to, &ratios(&case.figures(P99), &theirs.figures(P99))).goal("S6");
            rows.extend([row, slowest]);
        }
    }
}
