//! What is said: status, headers and body of S-61.

use std::convert::Infallible;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::model::ObjectName;

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
pub(super) fn answer(
    service: &ObjectName,
    local_endpoints: u32,
    service_proxy_healthy: bool,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = Body { service, local_endpoints, service_proxy_healthy };
    // Strings, numbers and booleans: nothing that could not be written.
    let text = serde_json::to_vec(&body).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = if local_endpoints > 0 && service_proxy_healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(local_endpoints));
    Ok(response)
}
