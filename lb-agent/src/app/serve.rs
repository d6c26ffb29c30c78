//! The two servers that tell how the agent is, and what they say of its configuration.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use hyper::Request;
use hyper::body::Incoming;
use serde_json::{Map, Value, json};
use tracing::warn;

use super::{Configuration, bad_configuration};
use crate::health::Health;
use crate::live::{self, Knobs};
use crate::options::{RunOptions, ServeOptions};
use crate::serve::{self, ProxyAnswers, Server, StatusAnswers};

/// Servers that listen and have nothing to say yet.
pub(super) struct Servers {
    health: Option<Server>,
    status: Option<Server>,
}

impl Servers {
    /// Opens the listeners that the flags name.
    ///
    /// # Errors
    /// With `--bind-address-hard-fail`: one cannot be had.
    pub(super) fn open(options: &ServeOptions) -> anyhow::Result<Self> {
        let open = |name, flag, address: Option<SocketAddr>| {
            let server = address.map(|address| Server::open(name, address, options.bind_address_hard_fail));
            let failed = || {
                format!(
                    "{flag} {} (with --bind-address-hard-fail)",
                    address.map(|it| it.to_string()).unwrap_or_default()
                )
            };
            server.transpose().with_context(failed).map_err(bad_configuration)
        };
        Ok(Self {
            health: open("health", "--healthz-bind-address", options.healthz_bind_address.0)?,
            status: open("metrics", "--metrics-bind-address", options.metrics_bind_address.0)?,
        })
    }

    /// Answers for the proxy's health from now on.
    pub(super) fn tell_health(&mut self, answers: ProxyAnswers) {
        let Some(server) = self.health.take() else { return };
        let respond =
            move |_, request: Request<Incoming>| std::future::ready(answers.answer(request.uri().path()));
        tokio::spawn(server.run(respond));
    }

    /// Answers with metrics and configuration from now on.
    pub(super) fn tell_status(&mut self, answers: StatusAnswers) {
        let Some(server) = self.status.take() else { return };
        let respond = move |_, request: Request<Incoming>| {
            let answers = answers.clone();
            async move { answers.answer(request.uri().path()).await }
        };
        tokio::spawn(server.run(respond));
    }
}

/// What `/configz` says: under kube-proxy's name what its file would say of what is in effect, under ours every flag.
pub(super) fn configz(options: &RunOptions, node_name: &str, configuration: &Configuration) -> Value {
    let seconds = |seconds: u32| format!("{seconds}s");
    let (timeouts, served) = (&options.timeouts, &options.serve);
    let address = |it: Option<SocketAddr>| it.map(|it| it.to_string()).unwrap_or_default();
    let mut proxy = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": serve::MODE,
        "hostnameOverride": node_name,
        "bindAddress": options.node.node_ip.first().map_or_else(|| "0.0.0.0".to_owned(), ToString::to_string),
        "healthzBindAddress": address(served.healthz_bind_address.0),
        "metricsBindAddress": address(served.metrics_bind_address.0),
        "bindAddressHardFail": served.bind_address_hard_fail,
        "nodePortAddresses": options.node.node_port_addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "clientConnection": {"kubeconfig": options.source.kubeconfig.as_ref().map(|path| path.to_string_lossy()).unwrap_or_default()},
        "conntrack": {
            "tcpEstablishedTimeout": seconds(timeouts.tcp_established_timeout),
            "tcpCloseWaitTimeout": seconds(timeouts.tcp_close_wait_timeout),
            "udpTimeout": seconds(timeouts.udp_timeout),
            "udpStreamTimeout": seconds(timeouts.udp_stream_timeout),
        },
    });
    if let Some(score) = served.oom_score_adj {
        proxy["oomScoreAdj"] = score.into();
    }
    let file = configuration.file.as_ref();
    let without = file.map(|file| file.without_meaning.clone()).unwrap_or_default();
    Value::Object(Map::from_iter([
        ("kubeproxy.config.k8s.io".to_owned(), proxy),
        ("lb-agent".to_owned(), json!({"flags": configuration.effective, "fieldsWithoutMeaning": without})),
    ]))
}

/// How often it is tried to open the socket of the run directory.
const OPEN_AGAIN: Duration = Duration::from_secs(5);

/// Lets knobs be turned by who asks at the socket of the run directory, for as long as it is polled. Without a socket the
/// agent does the rest of its work.
pub(super) async fn turn(run_dir: PathBuf, knobs: Knobs, health: Health) {
    let mut told = false;
    loop {
        match live::Server::open(&run_dir) {
            Ok(server) => {
                told = false;
                server.run(knobs.clone(), health.clone()).await;
                continue;
            }
            Err(error) if !told => {
                told = true;
                let run_dir = run_dir.display();
                warn!(
                    %run_dir, %error,
                    "`lb-agent set` does not reach this agent: its run directory cannot be used (--run-dir names \
                     another one)"
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(OPEN_AGAIN).await;
    }
}

/// How willingly the kernel ends this process. A wish that is not granted is no reason to serve nobody.
pub(super) fn set_oom_score(score: Option<i32>) {
    let Some(score) = score else { return };
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        warn!(score, %error, "--oom-score-adj not set: a lower one takes CAP_SYS_RESOURCE");
    }
}
