//! How the API server is found and talked to.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::sync::mpsc;

use super::events::Reporter;
use super::follow::follow;
use super::kinds::{OwnNode, Reducer};
use super::problems::SourceStats;
use super::ranges::ServiceRanges;
use super::select::Selection;
use super::trouble::chain;
use crate::index::{Change, Event};
use crate::model::{self, Cidr, NodeFacts};

/// How long a connection attempt may take before it counts as failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Sets of ranges between server and applier.
const RANGES: usize = 4;

/// How to reach the API server, and what to watch there.
#[derive(Clone, Debug, Default)]
pub struct ClusterOptions {
    /// A kubeconfig file; without it the service account of the pod, or else `$KUBECONFIG` and `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// The context in it, other than the current one.
    pub context: Option<String>,
    /// URL of the API server, in place of the configured one. A proxy for Services needs it in a cluster, where the
    /// configured one is a Service.
    pub server: Option<String>,
    /// Our node's name; empty when there is none, and then no Node is watched.
    pub node_name: String,
    /// Which objects are ours.
    pub selection: Selection,
}

/// Why it is not known how to reach an API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig file cannot be used.
    #[error("kubeconfig {}: {reason}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A context was asked for and not found.
    #[error("context {context:?}: {reason}")]
    Context {
        /// Its name.
        context: String,
        /// What is wrong.
        reason: String,
    },
    /// Nothing says where the API server is.
    #[error(
        "no API server configured: no kubeconfig was given, this is no pod with a service account ({in_cluster}), \
         and the default kubeconfig is of no use ({kubeconfig})"
    )]
    Nowhere {
        /// Why the in-cluster configuration does not work.
        in_cluster: String,
        /// Why the default kubeconfig does not work.
        kubeconfig: String,
    },
    /// The URL given does not parse.
    #[error("server {url:?}: {reason}")]
    Server {
        /// The URL.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificates, keys or credentials cannot be used.
    #[error("API server client: {0}")]
    Client(String),
}

/// The API server as a source.
pub(super) struct Cluster {
    client: Client,
    node_name: String,
    selection: Selection,
}

impl Cluster {
    pub(super) async fn connect(options: ClusterOptions) -> Result<Self, ConnectError> {
        let mut config = find(&options).await?;
        if let Some(url) = &options.server {
            set_server(&mut config, url)?;
        }
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // Retries are ours: they are logged, counted and never end.
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|error| ConnectError::Client(chain(&error)))?;
        Ok(Self { client, node_name: options.node_name, selection: options.selection })
    }

    pub(super) fn reporter(&self) -> Reporter {
        Reporter::start(self.client.clone(), self.node_name.clone())
    }

    /// Follows the ranges that cluster IPs are taken from.
    pub(super) fn follow_service_ranges(
        &self,
        stats: Arc<SourceStats>,
    ) -> (mpsc::Receiver<BTreeSet<Cidr>>, impl Future<Output = ()> + Send + use<>) {
        let (sender, receiver) = mpsc::channel(RANGES);
        (receiver, follow(self.client.clone(), ServiceRanges::new(), sender, stats))
    }

    pub(super) async fn run(self, events: mpsc::Sender<Event>, stats: Arc<SourceStats>) {
        let Self { client, node_name, selection } = self;
        let services = Reducer::<model::Service>::new(selection.clone());
        let slices = Reducer::<model::EndpointSlice>::new(selection);
        let node = async {
            if node_name.is_empty() {
                // The receiver may be gone already; then there is nobody to tell.
                let _ = events.send(Event::now(Change::Node(NodeFacts::default()))).await;
            } else {
                follow(client.clone(), OwnNode::new(&node_name), events.clone(), stats.clone()).await;
            }
        };
        tokio::join!(
            node,
            follow(client.clone(), services, events.clone(), stats.clone()),
            follow(client.clone(), slices, events.clone(), stats.clone()),
        );
    }
}

fn set_server(config: &mut Config, url: &str) -> Result<(), ConnectError> {
    let failed = |reason: String| ConnectError::Server { url: url.to_owned(), reason };
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(failed("it has to be like https://host:port".into()));
    }
    config.cluster_url = url.parse().map_err(|error| failed(chain(&error)))?;
    Ok(())
}

async fn find(options: &ClusterOptions) -> Result<Config, ConnectError> {
    let choice = KubeConfigOptions { context: options.context.clone(), ..KubeConfigOptions::default() };
    if let Some(path) = &options.kubeconfig {
        let failed = |error| ConnectError::Kubeconfig { path: path.clone(), reason: chain(&error) };
        let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
        return Config::from_custom_kubeconfig(kubeconfig, &choice).await.map_err(failed);
    }
    if let Some(context) = &options.context {
        return Config::from_kubeconfig(&choice)
            .await
            .map_err(|error| ConnectError::Context { context: context.clone(), reason: chain(&error) });
    }
    let in_cluster = match Config::incluster() {
        Ok(config) => return Ok(config),
        Err(error) => chain(&error),
    };
    match Config::from_kubeconfig(&choice).await {
        Ok(config) => Ok(config),
        // A server alone is enough, as for a proxy that does the authentication. Its URL is set by the caller.
        Err(_) if options.server.is_some() => Ok(Config::new(Default::default())),
        Err(error) => Err(ConnectError::Nowhere { in_cluster, kubeconfig: chain(&error) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubeconfig(server: &str) -> tempfile::NamedTempFile {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: '{server}'}}}}]\nusers: [{{name: u, user: {{token: t}}}}]\n"
        );
        let file = tempfile::Builder::new().prefix("lbt-").tempfile().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    async fn error(options: ClusterOptions) -> String {
        Cluster::connect(options).await.err().expect("an error").to_string()
    }

    #[tokio::test]
    async fn a_client_with_tls_is_made() {
        let file = kubeconfig("https://127.0.0.1:1");
        let options =
            ClusterOptions { kubeconfig: Some(file.path().to_owned()), ..ClusterOptions::default() };
        assert!(Cluster::connect(options).await.is_ok());
    }

    #[tokio::test]
    async fn errors_say_what_is_wrong() {
        let file = kubeconfig("https://127.0.0.1:1");
        let options =
            ClusterOptions { kubeconfig: Some(file.path().to_owned()), ..ClusterOptions::default() };

        let missing = ClusterOptions { kubeconfig: Some("/nonexistent/lbt".into()), ..options.clone() };
        let text = error(missing).await;
        assert!(text.contains("/nonexistent/lbt") && text.contains("No such file"), "{text}");

        let context = ClusterOptions { context: Some("other".into()), ..options.clone() };
        let text = error(context).await;
        assert!(text.contains("other"), "{text}");

        for server in ["10.0.0.1:6443", "ftp://10.0.0.1", "https://:x y"] {
            let text = error(ClusterOptions { server: Some(server.into()), ..options.clone() }).await;
            assert!(text.contains(server), "{text}");
        }
    }
}
