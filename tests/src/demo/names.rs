//! DNS through its own Service, and the kinds of Service that DNS answers in other ways.

use std::{collections::BTreeSet, net::IpAddr};

use hickory_proto::rr::RecordType;
use lb_agent::model::Protocol;
use lb_common::layout::ServiceStat;

use super::{Stage, snackbar::list, standing};
use crate::{
    cluster::{Transport, dns_query},
    workload::{http_get, resolve},
};

pub(super) async fn dns(stage: &mut Stage) -> anyhow::Result<()> {
    let Stage { cluster, teller } = stage;
    let order = cluster.pod("snackbar", "component=order")?;
    let server = cluster.cluster_ip("kube-system", "kube-dns")?;
    let payment = cluster.cluster_ip("snackbar", "payment")?;
    teller.note(
        "Every pod's resolv.conf names the ClusterIP of kube-dns. A UDP question is a flow of its own: the answer must \
         come from the address that was asked, or the resolver would not take it.",
    );
    let kind = if payment.is_ipv4() { RecordType::A } else { RecordType::AAAA };
    let name = "payment.snackbar.svc.cluster.local.";
    for (transport, label) in [(Transport::Udp, "UDP"), (Transport::Tcp, "TCP")] {
        let answer = dns_query(&order, server, transport, name, kind).await?;
        teller.check(
            answer == [payment.to_string()],
            format!("{label} to {server} port 53: {name} {kind} {}", list(&answer)),
        );
    }
    let service = "_http._tcp.numbers-api.numbers.svc.cluster.local.";
    let answer = dns_query(&order, server, Transport::Udp, service, RecordType::SRV).await?;
    teller.check(
        answer.len() == 1 && answer[0].contains(" 80 numbers-api.numbers"),
        format!("{service} SRV {}", list(&answer)),
    );
    let mut counted = 0;
    for agent in cluster.agents() {
        let tables = cluster.tables(agent.node())?;
        for (row, counters) in tables.ports_of("kube-system/kube-dns") {
            if row.key.as_ref().is_some_and(|key| key.protocol == Protocol::Udp) {
                counted += counters.get(ServiceStat::Connections);
            }
        }
    }
    teller.check(counted > 0, format!("the kernel has counted {counted} UDP flows to kube-dns so far"));
    Ok(())
}

pub(super) async fn kinds(stage: &mut Stage) -> anyhow::Result<()> {
    let Stage { cluster, teller } = stage;
    let member = cluster.pod("kinds", "app=member")?;
    let members = cluster.pods("kinds", "app=member")?;
    let strangers = cluster.pods("other", "app=member")?;
    let is_of = |answer: &str, pods: &[crate::lab::KubePod]| pods.iter().any(|pod| pod.name() == answer);

    let found: BTreeSet<IpAddr> = resolve(&member, "headless").await?.into_iter().collect();
    let pods: BTreeSet<IpAddr> = members.iter().flat_map(|pod| pod.addresses().iter().copied()).collect();
    teller.check(
        !found.is_empty() && found.is_subset(&pods) && found.len() == members.len(),
        format!("headless: DNS answers with the pods themselves: {}", list(&found)),
    );
    let answer = http_get(&member, "http://headless:8080/hostname").await?.text();
    teller.check(
        is_of(&answer, &members),
        format!("http://headless:8080 -> {answer}, no translation involved"),
    );

    let answer = http_get(&member, "http://elsewhere/hostname").await?.text();
    teller.check(
        is_of(&answer, &strangers),
        format!("ExternalName: elsewhere is an alias of same-name.other.svc.cluster.local -> {answer}"),
    );

    let own = http_get(&member, "http://same-name/hostname").await?.text();
    let other = http_get(&member, "http://same-name.other/hostname").await?.text();
    let (own_ip, other_ip) =
        (cluster.cluster_ip("kinds", "same-name")?, cluster.cluster_ip("other", "same-name")?);
    teller.check(
        own_ip != other_ip && is_of(&own, &members) && is_of(&other, &strangers),
        format!("two Services called same-name: {own_ip} of kinds -> {own}, {other_ip} of other -> {other}"),
    );

    let (address, serving) = standing::by_hand(cluster).await?;
    cluster.settle("default").await?;
    let answer = http_get(&member, "http://by-hand.default/hostname").await?.text();
    teller.check(
        answer == serving.hostname(),
        format!("no selector, an EndpointSlice written by hand with {address}: by-hand.default -> {answer}"),
    );
    Ok(())
}
