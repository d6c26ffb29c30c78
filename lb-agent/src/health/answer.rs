//! What is said: status, headers and body of S-61.

use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde::Serialize;

use crate::model::ObjectName;
use crate::serve::{self, Answer};

/// Tells load balancers that spread by weight how many endpoints are here.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: &'a ObjectName,
    local_endpoints: u32,
    service_proxy_healthy: bool,
}

/// The answer for a Service with that many ready endpoints on this node.
pub(super) fn answer(service: &ObjectName, local_endpoints: u32, service_proxy_healthy: bool) -> Answer {
    let body = Body { service, local_endpoints, service_proxy_healthy };
    let status = if local_endpoints > 0 && service_proxy_healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    // Strings, numbers and booleans: nothing that could not be written.
    let text = serde_json::to_vec(&body).unwrap_or_default();
    let mut response = serve::answer(status, "application/json", text);
    response.headers_mut().insert(WEIGHT, HeaderValue::from(local_endpoints));
    response
}
