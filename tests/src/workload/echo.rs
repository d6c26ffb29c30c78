//! A TCP server that sends back what it gets.

use std::sync::Arc;

use anyhow::Context;
use tokio::{
    io::{self, AsyncWriteExt},
    task::JoinSet,
};

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
        Self::start_greeting(at, port, "").await
    }

    /// As [`TcpEcho::start`], but sends `greeting` first on every connection.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start_greeting(
        at: &impl AsRef<Namespace>,
        port: u16,
        greeting: &str,
    ) -> anyhow::Result<Self> {
        let greeting: Arc<str> = greeting.into();
        at.as_ref()
            .run(async move {
                let listener = listen_tcp(None, port).await.with_context(|| format!("TCP port {port}"))?;
                let mut tasks = JoinSet::new();
                tasks.spawn(async move {
                    let mut connections = JoinSet::new();
                    while let Ok((stream, _)) = listener.accept().await {
                        while connections.try_join_next().is_some() {}
                        let greeting = Arc::clone(&greeting);
                        connections.spawn(async move {
                            let (mut from, mut to) = stream.into_split();
                            // The client sees how it ended.
                            if to.write_all(greeting.as_bytes()).await.is_ok() {
                                let _copied = io::copy(&mut from, &mut to).await;
                            }
                        });
                    }
                });
                Ok(Self { _tasks: tasks })
            })
            .await
    }
}
