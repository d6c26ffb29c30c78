//! The agent, with Services from a directory of manifests.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::services::SERVER_PORTS;
use super::{Forwarding, LOAD_LIMIT, Services};
use crate::lab::{AgentHandle, AgentOptions, Lab, Node};

pub(super) fn install(
    lab: &Lab,
    node: &Node,
    services: &Services,
    forwarding: Forwarding,
    socket_lb: &str,
) -> Result<()> {
    let forwarding = match forwarding {
        Forwarding::Stack => "stack",
        Forwarding::Redirect => "redirect",
    };
    let manifests = manifests(services, node.name());
    start(lab, node, &manifests, &["--forwarding", forwarding, "--socket-lb", socket_lb])
}

/// Lets an agent do its work and end.
pub(in crate::bench) fn start(lab: &Lab, node: &Node, manifests: &str, arguments: &[&str]) -> Result<()> {
    let dir = lab.state_dir().join(format!("{}-manifests", node.name()));
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("services.yaml"), manifests)
        .with_context(|| format!("write below {}", dir.display()))?;
    let agent = running(node, &dir, arguments)?;
    node.namespace().clone().block_on(async move {
        let ended = agent.sigterm().await?;
        ensure!(ended.success(), "the agent ended with {ended}:\n{}", agent.log());
        Ok(())
    })
}

/// An agent on a directory of manifests, once it serves.
pub(in crate::bench) fn running(node: &Node, manifests: &Path, arguments: &[&str]) -> Result<AgentHandle> {
    let root = node.bpffs().join("lb-agent");
    let mut options = AgentOptions::new([
        "run".to_owned(),
        format!("--manifests={}", manifests.display()),
        format!("--bpf-root={}", root.display()),
        format!("--node-name={}", node.name()),
        "--log=warn".to_owned(),
    ]);
    options.args.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    let agent = node.start_agent(options)?;
    node.namespace().clone().block_on(async move { ready(&agent).await.map(|()| agent) })
}

/// Waits until an agent serves, also on a machine that has much else to do.
pub(in crate::bench) async fn ready(agent: &AgentHandle) -> Result<()> {
    let begin = Instant::now();
    while agent.exit_status().is_none() && !agent.is_ready() && begin.elapsed() < LOAD_LIMIT {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Says why, if it is not.
    agent.wait_ready().await
}

/// A Service and its slice; one slice a port of its endpoints.
fn service(
    text: &mut String,
    name: &str,
    vip: &str,
    protocols: &[&str],
    endpoint: &str,
    node: &str,
    ports: &[u16],
) {
    // Here and below: writing to a string does not fail.
    let port = Services::MEASURED.port();
    let _written = writeln!(
        text,
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  clusterIP: {vip}\n  \
         clusterIPs: [{vip}]\n  ports:"
    );
    for protocol in protocols {
        let _written =
            writeln!(text, "  - {{name: {}, protocol: {protocol}, port: {port}}}", protocol.to_lowercase());
    }
    for target in ports {
        let _written = writeln!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{target}\n  namespace: \
             default\n  labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\nports:"
        );
        for protocol in protocols {
            let _written = writeln!(
                text,
                "- {{name: {}, protocol: {protocol}, port: {target}}}",
                protocol.to_lowercase()
            );
        }
        let _written = writeln!(
            text,
            "endpoints:\n- {{addresses: [{endpoint}], nodeName: {node}, conditions: {{ready: true}}}}"
        );
    }
}

fn manifests(services: &Services, node: &str) -> String {
    let mut text = String::new();
    for other in services.others() {
        let (name, vip, endpoint) =
            (format!("other-{}", other.number), other.vip.to_string(), other.endpoint.to_string());
        service(&mut text, &name, &vip, &["TCP"], &endpoint, "elsewhere", &[8080]);
    }
    let (vip, server) = (Services::MEASURED.ip().to_string(), services.server.to_string());
    service(&mut text, "server", &vip, &["TCP", "UDP"], &server, node, &SERVER_PORTS);
    text
}
