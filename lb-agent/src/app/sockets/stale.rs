//! Connected UDP sockets whose endpoint stopped serving are closed, so that their applications connect again (S-51): such
//! a socket talks to the endpoint itself, and nothing on the way could send its datagrams elsewhere.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use tracing::{debug, warn};

use crate::dataplane::mapped::MappedMemory;
use crate::dataplane::{Closed, Datapath, SocketCloser, SocketOptions, Suspects};
use crate::model::{ObjectName, Protocol};
use crate::plan::{PlanChange, ServicePlan};

/// After which time it is looked again: for sockets that were just connecting when their endpoint stopped serving.
const AGAIN: Duration = Duration::from_millis(200);

/// An endpoint with the name of the Service port it belongs to.
type Endpoint = (Arc<str>, SocketAddr);

/// Follows which UDP endpoints serve, and has sockets closed when one stops.
#[derive(Debug, Default)]
pub(in crate::app) struct StaleSockets {
    serving: HashMap<ObjectName, BTreeSet<Endpoint>>,
    /// Endpoints that stopped serving with changes that are not all in the tables yet.
    due: BTreeSet<SocketAddr>,
    /// Nothing is known yet of what the agent before did.
    fresh: bool,
    /// `None` when no sockets are translated.
    closer: Option<Sender<Suspects>>,
}

impl StaleSockets {
    /// Starts the thread that closes sockets, unless no sockets are translated.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(in crate::app) fn start(
        sockets: Option<&SocketOptions>,
        datapath: Arc<Datapath>,
        tables: Arc<MappedMemory>,
    ) -> anyhow::Result<Self> {
        let Some(options) = sockets else { return Ok(Self::default()) };
        let (sender, receiver) = channel();
        let closer = SocketCloser::new(options.namespace);
        thread::Builder::new()
            .name("stale sockets".to_owned())
            .spawn(move || run(closer, &datapath, &tables, &receiver))
            .context("starting the thread that closes stale sockets")?;
        Ok(Self { fresh: true, closer: Some(sender), ..Self::default() })
    }

    /// Takes in a change that is about to be applied.
    pub(in crate::app) fn take_in(&mut self, change: &PlanChange) {
        if self.closer.is_none() {
            return;
        }
        let serving = change.plan.as_ref().map(serving).unwrap_or_default();
        let old = if serving.is_empty() {
            self.serving.remove(&change.service)
        } else {
            self.serving.insert(change.service.clone(), serving)
        };
        let now = self.serving.get(&change.service);
        let gone = |endpoint: &Endpoint| now.is_none_or(|now| !now.contains(endpoint));
        self.due.extend(old.into_iter().flatten().filter(gone).map(|(_, address)| address));
    }

    /// Forgets every Service but these.
    pub(in crate::app) fn retain(&mut self, listed: &BTreeSet<&ObjectName>) {
        let Self { serving, due, .. } = self;
        serving.retain(|service, endpoints| {
            let keep = listed.contains(service);
            if !keep {
                due.extend(std::mem::take(endpoints).into_iter().map(|(_, address)| address));
            }
            keep
        });
    }

    /// The changes that were taken in are in the tables.
    pub(in crate::app) fn applied(&mut self) {
        let Some(closer) = &self.closer else { return };
        let due = std::mem::take(&mut self.due);
        let suspects = if std::mem::take(&mut self.fresh) {
            Suspects::All
        } else if due.is_empty() {
            return;
        } else {
            Suspects::Of(due)
        };
        // The thread only ends with this value.
        let _ = closer.send(suspects);
    }
}

/// UDP endpoints of a Service that serve.
fn serving(plan: &ServicePlan) -> BTreeSet<Endpoint> {
    let ports = plan.ports.iter().filter(|port| port.key.protocol == Protocol::Udp);
    ports
        .flat_map(|port| {
            let serving = port.endpoints.iter().filter(|endpoint| endpoint.serving);
            serving.map(|endpoint| {
                (port.key.port_name.clone(), SocketAddr::new(endpoint.address, endpoint.port))
            })
        })
        .collect()
}

/// Closes sockets until nobody asks for it any more.
fn run(mut closer: SocketCloser, datapath: &Datapath, tables: &MappedMemory, suspects: &Receiver<Suspects>) {
    let mut close = |suspects: &Suspects| closer.close(datapath.maps(), tables, suspects);
    let (mut told, mut unreachable_told) = (false, false);
    let mut again: Vec<(Instant, Suspects)> = Vec::new();
    loop {
        let now = Instant::now();
        let (due, later) = again.into_iter().partition(|(at, _)| *at <= now);
        again = later;
        let mut work: Vec<(Instant, Suspects)> = due;
        if work.is_empty() {
            let next = again.first().map_or(Duration::from_secs(3600), |(at, _)| at.duration_since(now));
            match suspects.recv_timeout(next) {
                Ok(suspects) => {
                    again.push((Instant::now() + AGAIN, suspects.clone()));
                    work.push((now, suspects));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        for (_, suspects) in &work {
            match close(suspects) {
                Ok(Closed { closed, unreachable }) => {
                    if closed > 0 {
                        debug!(closed, "UDP sockets closed whose endpoint stopped serving");
                    }
                    if unreachable > 0 && !unreachable_told {
                        unreachable_told = true;
                        warn!(
                            sockets = unreachable,
                            "UDP sockets of pods stay connected to an endpoint that stopped serving: their network \
                             namespaces are out of reach; let lb-agent see the host's processes or /run/netns"
                        );
                    }
                }
                Err(error) if !told => {
                    told = true;
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "UDP sockets stay connected to endpoints that stopped serving; a kernel with \
                         CONFIG_INET_DIAG_DESTROY lets lb-agent close them"
                    );
                }
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;
    use crate::plan::{ClassPlan, EndpointPlan, ServicePortKey, ServicePortPlan, Verdict};

    fn change(name: &str, protocol: Protocol, endpoints: &[(&str, bool)]) -> PlanChange {
        let service = ObjectName::new("default", name);
        let endpoint = |(text, serving): &(&str, bool)| {
            let address: SocketAddr = text.parse().unwrap();
            EndpointPlan { address: address.ip(), port: address.port(), local: true, serving: *serving }
        };
        let key =
            ServicePortKey { service: service.clone(), port_name: "".into(), protocol, family: Family::V4 };
        let port = ServicePortPlan {
            key,
            endpoints: endpoints.iter().map(endpoint).collect(),
            internal: ClassPlan { frontends: Vec::new(), verdict: Verdict::Reject },
            external: None,
            affinity_timeout: None,
            algorithm: crate::plan::Algorithm::Random,
        };
        let plan =
            ServicePlan { service: service.clone(), created: None, ports: vec![port], health_check: None };
        PlanChange { service, plan: Some(plan), received: None }
    }

    fn take_in(sockets: &mut StaleSockets, full: bool, changes: Vec<PlanChange>) {
        changes.iter().for_each(|change| sockets.take_in(change));
        if full {
            sockets.retain(&changes.iter().map(|change| &change.service).collect());
        }
    }

    fn of(endpoints: &[&str]) -> Suspects {
        Suspects::Of(endpoints.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn endpoints_that_stop_serving_are_looked_at_once_the_tables_say_so() {
        let (sender, asked) = channel();
        let mut sockets = StaleSockets { fresh: true, closer: Some(sender), ..StaleSockets::default() };
        let udp = |endpoints: &[(&str, bool)]| change("dns", Protocol::Udp, endpoints);
        let (one, two) = ("10.0.0.1:53", "10.0.0.2:53");

        take_in(&mut sockets, true, vec![udp(&[(one, true), (two, true)])]);
        assert!(asked.try_recv().is_err(), "not in the tables yet");
        sockets.applied();
        assert_eq!(asked.try_recv(), Ok(Suspects::All), "whatever the agent before left");

        take_in(&mut sockets, false, vec![udp(&[(one, true), (two, false)])]);
        // The tables took not all of it: tried again, with what changed since.
        take_in(&mut sockets, false, vec![udp(&[(one, false), (two, false)])]);
        sockets.applied();
        assert_eq!(asked.try_recv(), Ok(of(&[one, two])));

        take_in(&mut sockets, false, vec![udp(&[(one, true)])]);
        sockets.applied();
        assert!(asked.try_recv().is_err(), "nothing stopped");
        let gone = PlanChange { plan: None, ..udp(&[]) };
        take_in(&mut sockets, false, vec![gone]);
        sockets.applied();
        assert_eq!(asked.try_recv(), Ok(of(&[one])), "the Service is gone");
    }

    #[test]
    fn a_full_batch_ends_what_it_does_not_list_and_streams_are_nobodys_business() {
        let (sender, asked) = channel();
        let mut sockets = StaleSockets { closer: Some(sender), ..StaleSockets::default() };
        let (one, two) = ("10.0.0.1:53", "10.0.0.2:53");
        let both =
            vec![change("a", Protocol::Udp, &[(one, true)]), change("b", Protocol::Tcp, &[(two, true)])];
        take_in(&mut sockets, true, both);
        sockets.applied();
        assert!(asked.try_recv().is_err());
        take_in(&mut sockets, true, Vec::new());
        sockets.applied();
        assert_eq!(asked.try_recv(), Ok(of(&[one])));
    }
}
