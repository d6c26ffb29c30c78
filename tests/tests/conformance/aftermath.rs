//! What a failed title leaves behind, for whoever looks for the reason: it may not come again.

use std::time::Duration;

use lb_tests::{cluster::Tables, lab::Node};
use serde_json::Value;

use crate::fixture::Fixture;

/// How much of each agent's log.
const LOG_LINES: usize = 20;
/// How many connections of each node.
const CONNECTIONS: usize = 60;
/// Connections that were used this long ago at most, in seconds.
const IDLE: u64 = 10;

/// What every node knows: connections in use, refused and dropped packets, the end of its agent's log.
pub(crate) async fn of(fixture: &Fixture) -> String {
    let mut text = String::new();
    for node in fixture.cluster.lab().nodes() {
        let root = format!("--bpf-root={}", fixture.cluster.bpf_root(node).display());
        text.push_str(&format!(
            "\nconnections of {} (client, frontend, endpoint, masqueraded as):\n",
            node.name()
        ));
        let mut rows = connections(node, &root).await;
        // What is not as usual comes first.
        rows.sort_by_key(|row| matches!(row["state"].as_str(), Some("TIME_WAIT" | "REPLIED")));
        let recent = rows.iter().filter(|row| row["idle_seconds"].as_u64().is_some_and(|idle| idle <= IDLE));
        for row in recent.take(CONNECTIONS) {
            let fields =
                ["protocol", "state", "client", "frontend", "endpoint", "masqueraded_as", "age_seconds"];
            let words: Vec<String> = fields.map(|field| row[field].to_string().replace('"', "")).into();
            text.push_str(&format!("  {}\n", words.join(" ")));
        }
        let tables = fixture.cluster.tables(node);
        for (reason, packets) in tables.iter().flat_map(Tables::drops).filter(|(_, packets)| **packets != 0) {
            text.push_str(&format!("  dropped: {packets} {reason}\n"));
        }
    }
    text.push_str(&fixture.cluster.log_tails(LOG_LINES));
    text
}

/// The connections that a node knows; none if that cannot be asked, because something failed already.
async fn connections(node: &Node, root: &str) -> Vec<Value> {
    let output = node.agent_command(&["connections", "-o", "json", root], Duration::from_secs(5)).await;
    output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok()).unwrap_or_default()
}
