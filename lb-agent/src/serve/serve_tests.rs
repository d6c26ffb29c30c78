//! Servers and their answers, over real sockets on the loopback device.

use std::sync::Arc;

use http_body_util::BodyExt;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::health::Health;
use crate::k8s::SourceStats;
use crate::metrics::Metrics;
use crate::model::ObjectName;

fn answers(health: Health) -> ProxyAnswers {
    let metrics = Arc::new(Metrics::new(Arc::default()));
    ProxyAnswers { health, source: Arc::new(SourceStats::default()), metrics }
}

async fn told(answers: &ProxyAnswers, path: &str) -> (u16, Value) {
    let response = answers.answer(path);
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn s_60_a_proxy_is_well_from_its_start_until_a_change_waits_too_long() {
    let health = Health::new(Duration::from_millis(50));
    let answers = answers(health.clone());
    let (status, body) = told(&answers, "/healthz").await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["lastUpdated"], body["currentTime"], "who is well is up to date");
    assert_eq!((&body["nodeEligible"], &body["healthy"]), (&true.into(), &true.into()));
    assert_eq!(body["status"]["IPv4"]["healthy"], true);
    assert_eq!(told(&answers, "/livez").await.1.get("nodeEligible"), None);

    health.applying();
    assert_eq!(told(&answers, "/healthz").await.0, 200, "it may take a while");
    tokio::time::sleep(Duration::from_millis(60)).await;
    for path in ["/healthz", "/livez"] {
        let (status, body) = told(&answers, path).await;
        assert_eq!((status, &body["healthy"]), (503, &false.into()), "{path}");
        assert_eq!(body["lastUpdated"], "0001-01-01T00:00:00Z", "never");
        assert_eq!(body["status"]["IPv6"]["healthy"], false);
    }
    let name = ObjectName::new("shop", "web");
    health.applied([&name], &[&name].into());
    let (status, body) = told(&answers, "/healthz").await;
    assert_eq!((status, &body["lateServices"]), (200, &1.into()), "one late Service is not the node's fault");

    health.applying();
    tokio::time::sleep(Duration::from_millis(60)).await;
    let (status, body) = told(&answers, "/livez").await;
    assert_eq!(status, 503);
    let updated: jiff::Timestamp = body["lastUpdated"].as_str().unwrap().parse().unwrap();
    assert!(updated < body["currentTime"].as_str().unwrap().parse().unwrap());
}

#[tokio::test]
async fn paths_that_mean_nothing_are_not_found() {
    let answers = answers(Health::default());
    for path in ["/", "/metrics", "/healthz/"] {
        assert_eq!(answers.answer(path).status(), 404, "{path}");
    }
}

async fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /here HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

#[tokio::test]
async fn a_server_waits_for_its_address_unless_it_must_have_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    assert!(Server::open("test", address, true).is_err());
    let server = Server::open("test", address, false).unwrap();
    let respond = |_, request: Request<Incoming>| {
        std::future::ready(answer(StatusCode::OK, "text/plain", request.uri().path().to_owned()))
    };
    let serving = tokio::spawn(server.run(respond));
    drop(taken);
    let begin = std::time::Instant::now();
    let text = loop {
        if let Ok(text) = ask(address).await {
            break text;
        }
        assert!(begin.elapsed() < 5 * BIND_AGAIN, "it never listens");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("/here"), "{text}");
    serving.abort();
}

#[tokio::test]
async fn an_unspecified_ipv6_address_is_both_families() {
    let server = Server::open("test", "[::]:0".parse().unwrap(), true).unwrap();
    let port = server.listener.as_ref().unwrap().local_addr().unwrap().port();
    let respond = |local: SocketAddr, _: Request<Incoming>| {
        std::future::ready(answer(StatusCode::OK, "text/plain", local.to_string()))
    };
    let serving = tokio::spawn(server.run(respond));
    for host in ["127.0.0.1", "::1"] {
        let text = ask(SocketAddr::new(host.parse().unwrap(), port)).await.unwrap();
        assert!(text.contains(host), "{text}");
    }
    serving.abort();
}
