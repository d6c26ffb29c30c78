//! A protocol in which the server speaks first, and a Service whose name comes from a variable.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, timeout},
};

use super::Stage;
use crate::workload::{http_get, resolve};

const PORT: u16 = 3306;
const LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn tell(stage: &mut Stage) -> anyhow::Result<()> {
    let Stage { cluster, teller } = stage;
    let users = cluster.pod("default", "app=users")?;
    let ip = cluster.cluster_ip("default", "database")?;
    let found = resolve(&users, "database").await?;
    let begin = Instant::now();
    let greeting = users.as_ref().run(greeting(SocketAddr::new(found[0], PORT))).await?;
    let took = begin.elapsed();
    let readable: String = greeting
        .iter()
        .map(|byte| char::from(*byte))
        .filter(|it| it.is_ascii_graphic() || *it == ' ')
        .collect();
    teller.check(
        found == [ip] && !greeting.is_empty(),
        format!(
            "database:{PORT} ({ip}) greets first, {} bytes after {took:.1?}: {}",
            greeting.len(),
            readable.chars().take(40).collect::<String>()
        ),
    );
    let address = users.env_var("AUTH_ADDRESS").context("AUTH_ADDRESS is not set")?.to_owned();
    let answer = http_get(&users, &format!("http://{address}/hostname")).await?.text();
    let auth = cluster.pod("default", "app=auth")?;
    teller.check(answer == auth.name(), format!("AUTH_ADDRESS={address}: http://$AUTH_ADDRESS -> {answer}"));
    Ok(())
}

async fn greeting(to: SocketAddr) -> anyhow::Result<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(to).await.with_context(|| format!("connecting to {to}"))?;
        let mut greeting = vec![0; 256];
        let length = stream.read(&mut greeting).await?;
        greeting.truncate(length);
        anyhow::Ok(greeting)
    };
    timeout(LIMIT, exchange).await.context("no greeting in time")?
}
