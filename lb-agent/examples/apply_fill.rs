//! How long it takes to fill tables with many Services, to change one of them and to take the tables over, and
//! how much memory the agent keeps for that: `cargo run --release --example apply_fill -- [SERVICES] [ENDPOINTS EACH]`.

use std::env;
use std::fs;
use std::net::Ipv4Addr;
use std::time::Instant;

use lb_agent::apply::Applier;
use lb_agent::dataplane::memory::{CountedGrace, StoppingMemory, TableSizes, VecMemory};
use lb_agent::model::{Family, ObjectName, Protocol};
use lb_agent::plan::{
    ClassPlan, EndpointPlan, Frontend, FrontendKind, PlanBatch, PlanChange, ServicePlan, ServicePortKey,
    ServicePortPlan, Verdict,
};

fn change(number: u32, endpoints: u32) -> PlanChange {
    let service = ObjectName::new(&format!("namespace-{}", number % 100), &format!("service-{number}"));
    let endpoint = |at| EndpointPlan {
        address: Ipv4Addr::from_bits(0x0a80_0000 + number * 8 + at).into(),
        port: 8080,
        local: false,
        serving: true,
    };
    let address = Ipv4Addr::from_bits(0x0a60_0001 + number).into();
    let port = ServicePortPlan {
        key: ServicePortKey {
            service: service.clone(),
            port_name: "http".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        },
        endpoints: (0..endpoints).map(endpoint).collect(),
        internal: ClassPlan {
            frontends: vec![Frontend { address, port: 80, kind: FrontendKind::ClusterIp }],
            verdict: Verdict::Balance((0..endpoints).collect()),
        },
        external: None,
        affinity_timeout: None,
        algorithm: Algorithm::Random,
    };
    let plan = ServicePlan {
        service: service.clone(),
        created: Some(i64::from(number)),
        ports: vec![port],
        health_check: None,
    };
    PlanChange { service, plan: Some(plan), received: None }
}

/// Resident memory in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    status.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn main() {
    let mut arguments = env::args().skip(1).map(|argument| argument.parse().expect("a number"));
    let (services, endpoints) = (arguments.next().unwrap_or(50_000), arguments.next().unwrap_or(5));
    let memory = StoppingMemory::new(VecMemory::new(TableSizes::default()), u64::MAX);
    let mut changes: Vec<PlanChange> = (0..services).map(|number| change(number, endpoints)).collect();
    changes.sort_by(|a, b| a.service.cmp(&b.service));
    let batch = PlanBatch { full: true, changes };
    let again = batch.clone();

    let mut applier = Applier::adopt(&memory, CountedGrace::default()).expect("new tables");
    let (before, start) = (resident(), Instant::now());
    let report = applier.apply(batch);
    println!("fill: {:?}, {} stores, {} failures", start.elapsed(), memory.stores(), report.failures.len());
    // What the plans themselves took is freed by then and partly used again: an upper bound needs a fresh process.
    let kept = resident().saturating_sub(before);
    println!("resident memory grew by {} bytes a Service", kept / u64::from(services));

    let start = Instant::now();
    applier.apply(again.clone());
    println!("the same again: {:?}", start.elapsed());

    let start = Instant::now();
    for number in 0..1000 {
        let mut fewer = change(number, endpoints);
        if number % 2 == 0 {
            fewer = change(number, endpoints - 1);
        }
        applier.apply(PlanBatch { full: false, changes: vec![fewer] });
    }
    println!("one change: {:?}", start.elapsed() / 1000);
    drop(applier);

    let (before, start) = (resident(), Instant::now());
    let mut next = Applier::adopt(&memory, CountedGrace::default()).expect("our own tables");
    println!(
        "take over: {:?}, {} bytes a Service",
        start.elapsed(),
        resident().saturating_sub(before) / u64::from(services)
    );
    let start = Instant::now();
    let report = next.apply(again);
    println!("first full batch: {:?}, {} failures", start.elapsed(), report.failures.len());
}
