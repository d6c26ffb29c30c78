//! Looking at a Service from outside: what becomes visible, what stays, who answers.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use lb_tests::{lab::Caller, workload::NetError};
use tokio::time::timeout_at;

use super::{Case, PATIENCE};
use crate::service::Protocol;

/// Within this a change must be visible: some 10 ms are expected and noted, upstream allows 30 s. A loaded machine shall not
/// fail.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);
/// How long one look at something that changes may take: its first packet may have come too early, and be lost.
const LOOK: Duration = Duration::from_millis(400);
/// After this a look that has no answer yet is joined by another one: soon at first, then at leisure.
const ANOTHER_LOOK: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(25)];
/// Time between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// So many requests in a row say where they lead.
const IN_A_ROW: usize = 12;
/// After this a request that is to stay without answer has none.
const SILENCE: Duration = Duration::from_millis(300);
/// How long anything may take that the lab does, not the agents.
const LAB_LIMIT: Duration = Duration::from_secs(30);

impl Case {
    /// Asks until the answer is the wanted one, notes how long that took, and returns it. A look that has no answer after
    /// 5 ms is joined by another one, and given up after 400 ms, as [`NetError::Timeout`]: the first packet of a look may come
    /// too early, and be lost.
    ///
    /// # Errors
    /// It is not within [`LIMIT`]; says what the last answer was.
    pub(crate) async fn visible<T: Debug>(
        &self,
        what: &str,
        ask: impl AsyncFn() -> Result<T, NetError>,
        wanted: impl Fn(&Result<T, NetError>) -> bool,
    ) -> Result<Duration> {
        let elapsed = watch(ask, wanted).await.with_context(|| what.to_owned())?;
        self.note(what, elapsed);
        Ok(elapsed)
    }

    /// Asks so many times, one after another; every answer must be the wanted one.
    ///
    /// # Errors
    /// One is not.
    pub(crate) async fn stays<T: Debug>(
        &self,
        what: &str,
        times: u32,
        mut ask: impl AsyncFnMut() -> Result<T, NetError>,
        wanted: impl Fn(&Result<T, NetError>) -> bool,
    ) -> Result<()> {
        for time in 1..=times {
            let answer = ask().await;
            ensure!(wanted(&answer), "{what}: request {time} of {times} saw {answer:?}");
        }
        Ok(())
    }

    /// Asks so many times at once; soon nobody answers any of them, in whatever way, within 300 ms: no refusal either. (The
    /// node that is asked may learn of an endpoint a moment later than the one that was waited for.)
    ///
    /// # Errors
    /// Somebody still does after [`LIMIT`].
    pub(crate) async fn silent<T: Debug>(
        &self,
        what: &str,
        times: u32,
        ask: impl AsyncFn() -> Result<T, NetError>,
    ) -> Result<()> {
        let begin = Instant::now();
        loop {
            let asked = begin.elapsed();
            let looks = (0..times).map(|_| tokio::time::timeout(SILENCE, ask()));
            let seen = join_all(looks).await.into_iter().filter_map(Result::ok);
            let Some(answer) = seen.into_iter().find(|answer| !silent(answer)) else {
                self.note(what, asked);
                return Ok(());
            };
            ensure!(begin.elapsed() < LIMIT, "{what}: expected silence, saw {answer:?}");
        }
    }

    /// A connection (or a datagram on a connected socket) to `to` is refused within upstream's three seconds, and that is
    /// visible within [`LIMIT`]. (Linux heeds the refusal of an IPv6 connection with its second SYN only, a second later: that
    /// time is not noted.)
    ///
    /// # Errors
    /// It is not.
    pub(crate) async fn refuses(&self, caller: &Caller, to: SocketAddr, protocol: Protocol) -> Result<()> {
        let what = format!("{} is refused at {to}/{}", caller.name(), protocol.name());
        if to.is_ipv4() || protocol == Protocol::Udp {
            self.visible(&what, async || ask(caller, to, protocol).await, refused).await?;
            return Ok(());
        }
        let begin = Instant::now();
        loop {
            let answer = caller.within(PATIENCE).connect(to).await;
            if refused(&answer) {
                return Ok(());
            }
            ensure!(begin.elapsed() < 2 * LIMIT, "{what}: saw {answer:?}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Nobody answers at `to` any more, soon and from then on: new connections are refused or get no answer.
    ///
    /// # Errors
    /// Somebody answers.
    pub(crate) async fn unreachable(
        &self,
        caller: &Caller,
        to: SocketAddr,
        protocol: Protocol,
    ) -> Result<()> {
        let what = format!("nobody answers {} at {to}/{}", caller.name(), protocol.name());
        let begin = Instant::now();
        loop {
            let asked = begin.elapsed();
            let looks =
                (0..5).map(|_| ask(caller, to, protocol)).map(|look| tokio::time::timeout(SILENCE, look));
            let answer = join_all(looks).await.into_iter().find_map(|look| look.ok()?.ok());
            let Some(name) = answer else {
                self.note(&what, asked);
                return Ok(());
            };
            ensure!(begin.elapsed() < LIMIT, "{what}: {name} did");
        }
    }

    /// New connections (or sockets) to `to` reach all of these servers, and no other: twelve requests at least, twice as
    /// many as upstream, so that of two servers one that is not wanted is met all but surely.
    ///
    /// # Errors
    /// A request fails, another server answers, or one of them is not met in 40 requests for each.
    pub(crate) async fn reaches(
        &self,
        caller: &Caller,
        to: SocketAddr,
        protocol: Protocol,
        servers: &[&str],
    ) -> Result<()> {
        let wanted: BTreeSet<&str> = servers.iter().copied().collect();
        let mut met = BTreeSet::new();
        for asked in 1..=40 * wanted.len().max(1) {
            let answer = ask(caller, to, protocol).await;
            let name = answer.with_context(|| {
                format!("{} at {to}/{}, wanted {wanted:?}", caller.name(), protocol.name())
            })?;
            let known = wanted.get(name.as_str());
            met.insert(*known.with_context(|| format!("{name} answered at {to}, not one of {wanted:?}"))?);
            if met == wanted && asked >= IN_A_ROW {
                return Ok(());
            }
        }
        bail!("{} at {to}/{} met only {met:?} of {wanted:?}", caller.name(), protocol.name())
    }

    /// As [`Case::visible`] and [`Case::reaches`]: new connections reach exactly these servers soon, and then stay so.
    ///
    /// # Errors
    /// As those.
    pub(crate) async fn comes_to_reach(
        &self,
        caller: &Caller,
        to: SocketAddr,
        protocol: Protocol,
        servers: &[&str],
    ) -> Result<()> {
        let what = format!("{} reaches {servers:?} at {to}/{}", caller.name(), protocol.name());
        let begin = Instant::now();
        loop {
            // Some of them answer, then all of them do.
            let left = begin.elapsed();
            let first = watch(async || ask(caller, to, protocol).await, any_of(servers)).await;
            let first = left + first.with_context(|| what.clone())?;
            // What went to an endpoint that is gone, just before the change was visible, is not waited for.
            match self.reaches(&caller.within(SILENCE), to, protocol, servers).await {
                Ok(()) => {
                    // It held from the first of these requests on.
                    self.note(&what, first);
                    return Ok(());
                }
                Err(error) if begin.elapsed() > LIMIT => return Err(error.context(what)),
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Waits until something in the lab holds that agents have no part in.
    ///
    /// # Errors
    /// It does not.
    pub(crate) async fn eventually(
        &self,
        what: &str,
        mut holds: impl AsyncFnMut() -> Result<bool>,
    ) -> Result<()> {
        let begin = Instant::now();
        while !holds().await? {
            ensure!(begin.elapsed() < LAB_LIMIT, "waited in vain: {what}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }
}

/// Looks until the answer is the wanted one; the time of the look that saw it.
async fn watch<T: Debug>(
    ask: impl AsyncFn() -> Result<T, NetError>,
    wanted: impl Fn(&Result<T, NetError>) -> bool,
) -> Result<Duration> {
    let begin = Instant::now();
    let look = || async {
        let started = begin.elapsed();
        match tokio::time::timeout(LOOK, ask()).await {
            Ok(answer) => (answer, begin.elapsed()),
            // Silence began with the first packet.
            Err(_) => (Err(NetError::Timeout), started),
        }
    };
    let (mut looks, mut last) = (FuturesUnordered::new(), None);
    let mut count = 0_u32;
    while begin.elapsed() < LIMIT {
        looks.push(look());
        count += 1;
        let another = Instant::now() + ANOTHER_LOOK[usize::from(count > 20)];
        while let Ok(Some((answer, elapsed))) = timeout_at(another.into(), looks.next()).await {
            if wanted(&answer) {
                return Ok(elapsed);
            }
            last = Some(answer);
            if looks.is_empty() {
                tokio::time::sleep(LOOK_AGAIN).await;
                break;
            }
        }
    }
    bail!("not visible after {count} looks in {:.1?}; the last saw {last:?}", begin.elapsed())
}

/// The name of the netexec server that answers.
pub(crate) async fn ask(caller: &Caller, to: SocketAddr, protocol: Protocol) -> Result<String, NetError> {
    match protocol {
        Protocol::Tcp => caller.hostname(to).await,
        Protocol::Udp => caller.udp_hostname(to).await,
    }
}
/// The answer is this text.
pub(crate) fn is(wanted: &str) -> impl Fn(&Result<String, NetError>) -> bool {
    move |answer| answer.as_deref() == Ok(wanted)
}

/// The answer is one of these texts.
pub(crate) fn any_of(wanted: &[&str]) -> impl Fn(&Result<String, NetError>) -> bool {
    move |answer| answer.as_deref().is_ok_and(|answer| wanted.contains(&answer))
}

/// The application saw ECONNREFUSED.
pub(crate) fn refused<T>(answer: &Result<T, NetError>) -> bool {
    matches!(answer, Err(NetError::Refused))
}

/// Nobody answered.
pub(crate) fn silent<T>(answer: &Result<T, NetError>) -> bool {
    matches!(answer, Err(NetError::Timeout))
}
