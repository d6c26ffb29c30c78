//! A TCP server that sends back what it gets.

use anyhow::Context;
use tokio::{io, task::JoinSet};

use super::netexec::listen_tcp;
use crate::netns::Namespace;

/// A running TCP echo server. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct TcpEcho {
    _tasks: JoinSet<()>,
}

impl TcpEcho {
    /// Starts it on `port` of all addresses. It listens when this returns.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start(at: &impl AsRef<Namespace>, port: u16) -> anyhow::Result<Self> {
        at.as_ref()
            .run(async move {
                let listener = listen_tcp(None, port).await.with_context(|| format!("TCP port {port}"))?;
                let mut tasks = JoinSet::new();
                tasks.spawn(async move {
                    let mut connections = JoinSet::new();
                    while let Ok((stream, _)) = listener.accept().await {
                        while connections.try_join_next().is_some() {}
                        connections.spawn(async move {
                            let (mut from, mut to) = stream.into_split();
                            // The client sees how it ended.
                            let _copied = io::copy(&mut from, &mut to).await;
                        });
                    }
                });
                Ok(Self { _tasks: tasks })
            })
            .await
    }
}
