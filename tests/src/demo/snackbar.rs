//! Two Services call each other by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::Stage;
use crate::{
    cluster::Forwarding,
    workload::{http_get, resolve},
};

const CURL_LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn tell(stage: &mut Stage) -> anyhow::Result<()> {
    let Stage { cluster, teller } = stage;
    let order = cluster.pod("snackbar", "app=snackbar,component=order")?;
    let payments = cluster.pods("snackbar", "app=snackbar,component=payment")?;
    let ip = cluster.cluster_ip("snackbar", "payment")?;
    teller.note(&format!(
        "{} sends to {ip}, an address nobody has. At its own device from_pod finds the Service, picks one of its \
         endpoints at random and rewrites the destination; the reply gets the Service's address back.",
        order.name()
    ));
    teller.note(match cluster.forwarding() {
        Forwarding::Stack => "Forwarding is `stack`: rewritten packets go through the host's routing and netfilter as ever.",
        Forwarding::Redirect => {
            "Forwarding is `redirect`: rewritten packets go straight to the other pod's device, past the host's stack."
        }
    });

    let host = order.env_var("PAYMENT_SERVICE_HOST").unwrap_or_default().to_owned();
    let port = order.env_var("PAYMENT_SERVICE_PORT").unwrap_or_default().to_owned();
    teller.check(
        host == ip.to_string() && port == "80",
        format!("in the pod PAYMENT_SERVICE_HOST={host}, PAYMENT_SERVICE_PORT={port}"),
    );
    for name in ["payment", "payment.snackbar", "payment.snackbar.svc.cluster.local"] {
        let found = resolve(&order, name).await.unwrap_or_default();
        let output = order
            .exec(&["curl", "-sS", "--max-time", "3", &format!("http://{name}/hostname")], CURL_LIMIT)
            .await?;
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let from_payment = payments.iter().any(|pod| pod.name() == answer);
        teller.check(
            found == [ip] && output.status.success() && from_payment,
            format!("curl http://{name} -> {} -> {answer}{error}", list(&found)),
        );
    }

    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut asked = 0;
    // Both are missed by ten random choices once in 512 times: then it takes some more.
    while asked < 10 || (seen.len() < 2 && asked < 40) {
        *seen.entry(http_get(&order, "http://payment/hostname").await?.text()).or_default() += 1;
        asked += 1;
    }
    let answers: Vec<String> = seen.iter().map(|(pod, count)| format!("{count} by {pod}")).collect();
    let expected: BTreeSet<&str> = payments.iter().map(|pod| pod.name()).collect();
    teller.check(
        seen.keys().map(String::as_str).collect::<BTreeSet<_>>() == expected,
        format!("{asked} requests answered by both pods: {}", answers.join(", ")),
    );

    let slices: Vec<EndpointSlice> =
        cluster.api().list(Some("snackbar"), "kubernetes.io/service-name=payment")?;
    let listed: BTreeSet<IpAddr> = slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses))
        .filter_map(|address| address.parse().ok())
        .collect();
    let pods: BTreeSet<IpAddr> = payments
        .iter()
        .flat_map(|pod| pod.addresses().iter().copied())
        .filter(|address| address.is_ipv4() == ip.is_ipv4())
        .collect();
    let mut in_kernel = BTreeSet::new();
    for agent in cluster.agents() {
        let tables = cluster.tables(agent.node())?;
        let chosen = tables.ports_of("snackbar/payment").flat_map(|(row, _)| tables.chosen(row));
        in_kernel.insert(chosen.map(|endpoint| endpoint.ip()).collect::<BTreeSet<_>>());
    }
    teller.check(
        listed == pods && in_kernel == BTreeSet::from([pods.clone()]),
        format!("EndpointSlices and the kernel of every node list the pods' addresses: {}", list(&pods)),
    );
    Ok(())
}

/// Things with commas between them.
pub(super) fn list<T: std::fmt::Display>(things: impl IntoIterator<Item = T>) -> String {
    things.into_iter().map(|thing| thing.to_string()).collect::<Vec<_>>().join(", ")
}
