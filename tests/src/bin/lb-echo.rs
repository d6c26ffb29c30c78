//! A TCP server that sends back what it gets, as a process of its own: `lb-echo PORT`. It has all the file descriptors of a
//! process for itself, which a test with thousands of connections needs twice as many of.

use anyhow::Context as _;
use tokio::{io, net::TcpListener};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let port: u16 = std::env::args().nth(1).context("which port?")?.parse().context("the port")?;
    let listener = TcpListener::bind(("0.0.0.0", port)).await.with_context(|| format!("TCP port {port}"))?;
    loop {
        let (stream, _) = listener.accept().await.context("accepting a connection")?;
        tokio::spawn(async move {
            let (mut from, mut to) = stream.into_split();
            // The client sees how it ended.
            let _copied = io::copy(&mut from, &mut to).await;
        });
    }
}
