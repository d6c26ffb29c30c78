//! What the programs count for Service ports and their endpoints; bounded, because clusters are not.

use std::collections::HashMap;
use std::net::SocketAddr;

use lb_common::layout::{BackendStat, Class, FrontendKind, ServiceStat};

use super::catalogue as list;
use super::catalogue::Family;
use super::text::Text;
use crate::apply::{ServiceView, TablesView};
use crate::dataplane::{BackendCounters, Counters, Result, ServiceCounters};
use crate::model::Family as IpFamily;
use crate::options::MetricsDetail;

/// Series of a Service port.
const SERVICE_SERIES: usize = 13;
/// Series of an endpoint.
const ENDPOINT_SERIES: usize = 5;

/// A Service port or an endpoint, with its labels.
type Labels = Vec<(&'static str, String)>;

/// A Service port.
struct ServiceRow {
    labels: Labels,
    counters: ServiceCounters,
    /// Flows at the last sweep.
    active: u64,
    /// Endpoints that a new connection at the cluster IP chooses from.
    endpoints: usize,
}

/// What is told of them, read.
pub(super) struct Rows {
    services: Vec<ServiceRow>,
    endpoints: Vec<(Labels, BackendCounters)>,
    omitted_services: usize,
    omitted_endpoints: usize,
}

/// The name of a family, as kube-proxy's metrics have it.
pub(super) const fn family_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "IPv4",
        IpFamily::V6 => "IPv6",
    }
}

fn labels_of(service: &ServiceView) -> Option<Labels> {
    let key = service.key.as_ref()?;
    let number = || {
        let own = service.frontends.iter().find(|frontend| frontend.kind == FrontendKind::ClusterIp);
        own.map(|frontend| frontend.port.to_string()).unwrap_or_default()
    };
    let port = if key.port_name.is_empty() { number() } else { key.port_name.to_string() };
    Some(vec![
        ("namespace", key.service.namespace.to_string()),
        ("service", key.service.name.to_string()),
        ("port", port),
        ("protocol", key.protocol.to_string()),
        ("ip_family", family_name(key.family).to_owned()),
    ])
}

impl Rows {
    /// Reads the counters of as many as `most` series allow: Service ports by row, then endpoints by row. A Service keeps
    /// its row, so that those that are told of stay the same.
    pub(super) fn read(
        view: &TablesView,
        counters: &Counters<'_>,
        active: &HashMap<u32, u64>,
        detail: MetricsDetail,
        most: usize,
    ) -> Result<Self> {
        let mut rows =
            Self { services: Vec::new(), endpoints: Vec::new(), omitted_services: 0, omitted_endpoints: 0 };
        if detail == MetricsDetail::None {
            return Ok(rows);
        }
        let named: HashMap<u32, Labels> =
            view.services.iter().filter_map(|service| Some((service.index, labels_of(service)?))).collect();
        let mut left = most;
        for service in &view.services {
            let Some(labels) = named.get(&service.index) else { continue };
            if left < SERVICE_SERIES {
                rows.omitted_services += 1;
                continue;
            }
            left -= SERVICE_SERIES;
            let counters = counters.service(service.index)?;
            let active = active.get(&service.index).copied().unwrap_or(0);
            let endpoints = service.class(Class::Internal).slots.len();
            rows.services.push(ServiceRow { labels: labels.clone(), counters, active, endpoints });
        }
        if detail < MetricsDetail::Endpoints {
            return Ok(rows);
        }
        for backend in &view.backends {
            let Some(labels) = named.get(&backend.service) else { continue };
            if left < ENDPOINT_SERIES {
                rows.omitted_endpoints += 1;
                continue;
            }
            left -= ENDPOINT_SERIES;
            let mut labels = labels.clone();
            labels.push(("endpoint", SocketAddr::new(backend.address, backend.port).to_string()));
            let counters = counters.backend(backend.family == IpFamily::V6, backend.index)?;
            rows.endpoints.push((labels, counters));
        }
        Ok(rows)
    }

    /// Writes them.
    pub(super) fn write(&self, text: &mut Text) {
        text.family(&list::OMITTED)
            .sample(&[("what", "services")], self.omitted_services)
            .sample(&[("what", "endpoints")], self.omitted_endpoints);
        let mut of_services = |family: &Family, value: &dyn Fn(&ServiceRow) -> f64| {
            let mut samples = text.family(family);
            for row in &self.services {
                samples.sample(&borrowed(&row.labels, None), value(row));
            }
        };
        let counter = |stat| move |row: &ServiceRow| row.counters.get(stat) as f64;
        of_services(&list::SERVICE_CONNECTIONS, &counter(ServiceStat::Connections));
        of_services(&list::SERVICE_ACTIVE, &|row| row.active as f64);
        of_services(&list::SERVICE_REFUSED, &counter(ServiceStat::Refused));
        of_services(&list::SERVICE_DROPPED, &counter(ServiceStat::Dropped));
        of_services(&list::SERVICE_RESELECTED, &counter(ServiceStat::Reselected));
        of_services(&list::SERVICE_RECYCLED, &counter(ServiceStat::Recycled));
        of_services(&list::SERVICE_HANDSHAKES, &counter(ServiceStat::Handshakes));
        of_services(&list::SERVICE_HANDSHAKE_SECONDS, &|row| {
            row.counters.get(ServiceStat::HandshakeMicros) as f64 / 1e6
        });
        of_services(&list::SERVICE_ENDPOINTS, &|row| row.endpoints as f64);
        for (family, request, reply) in [
            (&list::SERVICE_PACKETS, ServiceStat::Packets, ServiceStat::ReplyPackets),
            (&list::SERVICE_BYTES, ServiceStat::Bytes, ServiceStat::ReplyBytes),
        ] {
            let mut samples = text.family(family);
            for ServiceRow { labels, counters, .. } in &self.services {
                samples.sample(&borrowed(labels, Some("request")), counters.get(request));
                samples.sample(&borrowed(labels, Some("reply")), counters.get(reply));
            }
        }
        let mut samples = text.family(&list::ENDPOINT_CONNECTIONS);
        for (labels, counters) in &self.endpoints {
            samples.sample(&borrowed(labels, None), counters.get(BackendStat::Connections));
        }
        for (family, request, reply) in [
            (&list::ENDPOINT_PACKETS, BackendStat::Packets, BackendStat::ReplyPackets),
            (&list::ENDPOINT_BYTES, BackendStat::Bytes, BackendStat::ReplyBytes),
        ] {
            let mut samples = text.family(family);
            for (labels, counters) in &self.endpoints {
                samples.sample(&borrowed(labels, Some("request")), counters.get(request));
                samples.sample(&borrowed(labels, Some("reply")), counters.get(reply));
            }
        }
    }
}

fn borrowed<'a>(labels: &'a Labels, direction: Option<&'a str>) -> Vec<(&'a str, &'a str)> {
    let own = labels.iter().map(|(name, value)| (*name, value.as_str()));
    own.chain(direction.map(|direction| ("direction", direction))).collect()
}
