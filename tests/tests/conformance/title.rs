//! Titles: what a test is called, where it runs, and how it becomes a trial of the test harness.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result};
use futures::future::LocalBoxFuture;
use lb_tests::cluster::ClusterBuilder;
use libtest_mimic::{Failed, Trial};
use tokio::runtime::Runtime;

use crate::{
    aftermath,
    case::Case,
    fixture::{Fixture, IpFamily, Slot, Variant},
    record::{self, Notes},
};

/// The titles of one upstream file and suite.
pub(crate) struct Group {
    /// The file (`service.go`), or what stands for it.
    file: &'static str,
    /// What names of its tests begin with (`Services`).
    suite: &'static str,
    titles: Vec<Title>,
    outside: bool,
}

impl Group {
    /// The titles of a file.
    pub(crate) fn new(file: &'static str, suite: &'static str, titles: Vec<Title>) -> Self {
        Self { file, suite, titles, outside: false }
    }

    /// Its titles have clients outside: they run with XDP, too.
    pub(crate) fn outside(mut self) -> Self {
        self.outside = true;
        self
    }
}

type Body = Arc<dyn Fn(Case) -> LocalBoxFuture<'static, Result<()>> + Send + Sync>;
type Change = Arc<dyn Fn(ClusterBuilder) -> ClusterBuilder + Send + Sync>;

/// A test.
pub(crate) struct Title {
    name: String,
    body: Body,
    once: bool,
    each_family: bool,
    ipv6: bool,
    /// Set for a title that wants a cluster of its own.
    own: Option<Change>,
}

impl Title {
    /// A title that runs in all variants, with IPv4.
    pub(crate) fn new<F>(name: impl Into<String>, body: impl Fn(Case) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<()>> + 'static,
    {
        Self {
            name: name.into(),
            body: Arc::new(move |case| Box::pin(body(case))),
            once: false,
            each_family: false,
            ipv6: false,
            own: None,
        }
    }

    /// Runs in one variant only (routed, stack): neither the shape nor the mode can matter.
    pub(crate) fn once(mut self) -> Self {
        self.once = true;
        self
    }

    /// Runs once for IPv4 and once for IPv6.
    pub(crate) fn each_family(mut self) -> Self {
        self.each_family = true;
        self
    }

    /// Runs with IPv6 instead of IPv4: for titles about the secondary family.
    pub(crate) fn ipv6(mut self) -> Self {
        self.ipv6 = true;
        self
    }

    /// Runs on a cluster of its own, made as `change` says: for titles that kill agents, stop the API server, or need
    /// other flags.
    pub(crate) fn alone(
        mut self,
        change: impl Fn(ClusterBuilder) -> ClusterBuilder + Send + Sync + 'static,
    ) -> Self {
        self.own = Some(Arc::new(change));
        self
    }
}

/// All trials, those of a variant together, so that its cluster need not stand longer than it is used.
pub(crate) fn trials(groups: Vec<Group>, runtime: &Arc<Runtime>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for variant in Variant::ALL {
        let slot = Arc::new(Slot::new(variant, Arc::clone(runtime)));
        for group in groups.iter().filter(|group| group.outside || !variant.xdp) {
            let here = group.titles.iter().filter(|title| !title.once || variant == Variant::default());
            for title in here {
                let families: &[IpFamily] = match (title.each_family, title.ipv6) {
                    (true, _) => &IpFamily::BOTH,
                    (false, true) => &[IpFamily::V6],
                    (false, false) => &[IpFamily::V4],
                };
                trials.extend(families.iter().map(|family| trial(group, title, *family, &slot, runtime)));
            }
        }
    }
    trials
}

fn trial(group: &Group, title: &Title, family: IpFamily, slot: &Arc<Slot>, runtime: &Arc<Runtime>) -> Trial {
    let variant = slot.variant();
    let place = match title.each_family {
        true => format!("{variant}, {family}"),
        false => variant.to_string(),
    };
    let what = record::Subject {
        file: group.file.to_owned(),
        suite: group.suite.to_owned(),
        title: title.name.clone(),
        place: place.clone(),
    };
    let (body, own) = (Arc::clone(&title.body), title.own.clone());
    let (slot, runtime) = (Arc::clone(slot), Arc::clone(runtime));
    Trial::test(format!("{} {} {{{place}}}", group.suite, title.name), move || {
        let (mut begin, notes, mut after) = (Instant::now(), Notes::default(), String::new());
        let shared = own.is_none();
        let run = || -> Result<()> {
            let fixture = match own {
                Some(change) => runtime.block_on(Fixture::start(variant, &*change)).map(Arc::new),
                None => slot.fixture(),
            };
            // The time a cluster takes to start is nobody's.
            begin = Instant::now();
            let case = Case::new(fixture.context("no cluster")?, family, Arc::clone(&notes))?;
            let outcome = runtime.block_on(body(case));
            if outcome.is_err() && shared {
                after = runtime.block_on(aftermath::of(&*slot.fixture()?));
            }
            outcome
        };
        let outcome = catch_unwind(AssertUnwindSafe(run));
        let error = match &outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(panic) => Some(message(&**panic)),
        };
        record::write(&what, &notes, begin.elapsed(), error.as_deref());
        match outcome {
            Ok(result) => result.map_err(|error| Failed::from(format!("{error:?}{after}"))),
            Err(panic) => resume_unwind(panic),
        }
    })
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}
