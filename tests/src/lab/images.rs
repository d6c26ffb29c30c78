//! Container images the lab knows: what a container of that image does, as tasks of this process.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;

use super::{
    process::{self, Process, Surroundings},
    run::Run,
};
use crate::{
    netns::{Namespace, lock},
    runtime::RuntimeFuture,
    workload::{Netexec, Server, TcpEcho, TcpOptions, tcp_connect_with},
};

/// A container about to be started.
#[derive(Clone)]
pub struct Container {
    /// The pod's network namespace (the node's, for host-network pods).
    pub namespace: Namespace,
    /// The pod's host name.
    pub hostname: String,
    /// The pod's addresses, primary family first.
    pub addresses: Vec<IpAddr>,
    /// The container's name.
    pub name: String,
    /// The image as written in the pod.
    pub image: String,
    /// `command` and `args`, joined; variables `$(NAME)` expanded.
    pub argv: Vec<String>,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// How long `lifecycle.preStop` sleeps before the container is told to terminate.
    pub pre_stop: Duration,
    pub(crate) run: Arc<Run>,
}

impl Container {
    /// The value of `--name=value` or `--name value` in the arguments.
    pub fn flag(&self, name: &str) -> Option<&str> {
        let mut arguments = self.argv.iter();
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix("--") else { continue };
            match flag.split_once('=') {
                Some((key, value)) if key == name => return Some(value),
                None if flag == name => return arguments.next().map(String::as_str),
                _ => {}
            }
        }
        None
    }

    /// A directory of this container alone, removed with the lab.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn directory(&self) -> anyhow::Result<PathBuf> {
        let directory = self.run.state().join(format!("{}-{}", self.namespace.name(), self.name));
        std::fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        Ok(directory)
    }

    /// Starts a program in the container's place; it is killed when the handle is dropped.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, argv: &[String]) -> anyhow::Result<Process> {
        let command = process::command(&self.namespace, &Surroundings::default(), argv, &self.env)?;
        let log = self.run.state().join("logs").join(format!("{}-{}.log", self.namespace.name(), self.name));
        Process::start(command, &self.run, log)
    }
}

/// A started container.
pub trait ContainerHandle: Send + Sync {
    /// Resolves once the container serves.
    fn wait_ready(&self) -> RuntimeFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Tells the container to terminate, gives it `grace` to finish, and resolves when it is gone. Called once.
    fn stop(&self, grace: Duration) -> RuntimeFuture<'_, ()>;
}

/// Starts a container of one image.
pub type StartContainer =
    Arc<dyn Fn(Container) -> RuntimeFuture<'static, Box<dyn ContainerHandle>> + Send + Sync>;

/// The images every lab knows, by repository.
pub(crate) fn built_in() -> Vec<(String, StartContainer)> {
    let image = |name: &str, start: StartContainer| (name.to_owned(), start);
    vec![
        image("agnhost", Arc::new(|container| Box::pin(agnhost(container)))),
        image("pause", Arc::new(|_| Box::pin(async { boxed(Idle) }))),
        image("busybox", Arc::new(|_| Box::pin(async { boxed(Idle) }))),
        image("mariadb", Arc::new(|container| Box::pin(mariadb(container)))),
    ]
}

/// Whether the image `reference` is of repository `name` (`registry.k8s.io/pause:3.10` is of `pause`, `library/pause`
/// is not asked for, and of `registry.k8s.io/pause`).
pub(crate) fn is_of(reference: &str, name: &str) -> bool {
    let without_digest = reference.split('@').next().unwrap_or(reference);
    let repository = match without_digest.rsplit_once(':') {
        // A colon before a slash belongs to the registry's port.
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => without_digest,
    };
    repository == name || repository.rsplit('/').next() == Some(name)
}

fn boxed(handle: impl ContainerHandle + 'static) -> anyhow::Result<Box<dyn ContainerHandle>> {
    Ok(Box::new(handle))
}

/// A container that does nothing until it is told to stop.
struct Idle;

impl ContainerHandle for Idle {
    fn stop(&self, _grace: Duration) -> RuntimeFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// The agnhost image: `netexec`, `fake-registry-server` and `pause`.
async fn agnhost(container: Container) -> anyhow::Result<Box<dyn ContainerHandle>> {
    match container.argv.iter().map(String::as_str).find(|argument| *argument != "/agnhost") {
        None | Some("pause") => return boxed(Idle),
        Some("netexec") => {}
        Some("fake-registry-server") => {
            let port = container.flag("port").map_or(Ok(5000), str::parse).context("--port")?;
            let server = Netexec::new(&container.hostname).http(port).registry();
            let server = server.start(&container.namespace).await?;
            return boxed(Agnhost { server: Mutex::new(Some(server)), delay: Duration::ZERO });
        }
        Some(other) => anyhow::bail!("agnhost {other} is not part of the lab"),
    }
    let port = |flag: &str, default: u16| match container.flag(flag) {
        Some("-1") => Ok(None),
        Some(text) => {
            text.parse().map(Some).with_context(|| format!("container {}: --{flag}={text}", container.name))
        }
        None => Ok(Some(default)),
    };
    let mut server = Netexec::new(&container.hostname);
    if let Some(port) = port("http-port", 8080)? {
        server = server.http(port);
    }
    if let Some(port) = port("udp-port", 8081)? {
        server = server.udp(port);
    }
    if let Some(addresses) = container.flag("udp-listen-addresses") {
        let addresses = addresses.split(',').map(|address| address.trim().parse());
        server =
            server.udp_addresses(addresses.collect::<Result<Vec<_>, _>>().context("--udp-listen-addresses")?);
    }
    let delay = container.flag("delay-shutdown").map(str::parse).transpose().context("--delay-shutdown")?;
    let delay = container.pre_stop + Duration::from_secs(delay.unwrap_or(0));
    let server = server.start(&container.namespace).await?;
    boxed(Agnhost { server: Mutex::new(Some(server)), delay })
}

struct Agnhost {
    /// `None` once stopped.
    server: Mutex<Option<Server>>,
    delay: Duration,
}

impl ContainerHandle for Agnhost {
    fn stop(&self, grace: Duration) -> RuntimeFuture<'_, ()> {
        let (server, delay) = (lock(&self.server).take(), self.delay.min(grace));
        Box::pin(async move {
            if let Some(server) = server {
                server.shut_down(delay, grace - delay).await;
            }
            Ok(())
        })
    }
}

/// The database's port.
const MARIADB_PORT: u16 = 3306;
/// How long a real database may take until it listens.
const MARIADB_LIMIT: Duration = Duration::from_secs(60);

/// The mariadb image: a real server when this machine has one, else a TCP server that greets and echoes.
async fn mariadb(container: Container) -> anyhow::Result<Box<dyn ContainerHandle>> {
    let Some(server) = find_program(&["mariadbd", "mysqld"]) else {
        let greeting = format!("database {}\n", container.hostname);
        let server = TcpEcho::start_greeting(&container.namespace, MARIADB_PORT, &greeting).await?;
        return boxed(Greeter { server: Mutex::new(Some(server)) });
    };
    let directory = container.directory()?;
    let at = |name: &str| directory.join(name).to_string_lossy().into_owned();
    if let Some(install) = find_program(&["mariadb-install-db", "mysql_install_db"]) {
        let argv = [
            install,
            "--no-defaults".to_owned(),
            "--user=root".to_owned(),
            "--skip-test-db".to_owned(),
            "--auth-root-authentication-method=normal".to_owned(),
            format!("--datadir={}", at("data")),
        ];
        container.spawn(&argv)?.wait(MARIADB_LIMIT).await?;
    }
    let argv = [
        server,
        "--no-defaults".to_owned(),
        "--user=root".to_owned(),
        "--skip-grant-tables".to_owned(),
        "--skip-networking=0".to_owned(),
        "--bind-address=*".to_owned(),
        // Clients are pods without names in anyone's DNS.
        "--skip-name-resolve".to_owned(),
        format!("--port={MARIADB_PORT}"),
        format!("--datadir={}", at("data")),
        format!("--socket={}", at("socket")),
        format!("--pid-file={}", at("pid")),
    ];
    let process = container.spawn(&argv)?;
    boxed(Database { process, container })
}

/// The first of these programs that is installed.
fn find_program(names: &[&str]) -> Option<String> {
    names
        .iter()
        .flat_map(|name| ["/usr/sbin", "/usr/bin"].map(|directory| Path::new(directory).join(name)))
        .find(|path| path.is_file())
        .map(|path| path.to_string_lossy().into_owned())
}

struct Greeter {
    /// `None` once stopped.
    server: Mutex<Option<TcpEcho>>,
}

impl ContainerHandle for Greeter {
    fn stop(&self, _grace: Duration) -> RuntimeFuture<'_, ()> {
        drop(lock(&self.server).take());
        Box::pin(async { Ok(()) })
    }
}

struct Database {
    process: Process,
    container: Container,
}

impl ContainerHandle for Database {
    fn wait_ready(&self) -> RuntimeFuture<'_, ()> {
        Box::pin(async {
            let address = self.container.addresses.first().context("a pod without address")?;
            let to = SocketAddr::new(*address, MARIADB_PORT);
            let begin = std::time::Instant::now();
            let options = TcpOptions { timeout: Duration::from_secs(1), ..TcpOptions::default() };
            while tcp_connect_with(&self.container.namespace, to, options).await.is_err() {
                let ended = self.process.exit_status().is_some() || begin.elapsed() > MARIADB_LIMIT;
                anyhow::ensure!(!ended, "the database does not start:\n{}", self.process.log());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        })
    }

    fn stop(&self, grace: Duration) -> RuntimeFuture<'_, ()> {
        Box::pin(async move {
            self.process.signal(libc::SIGTERM)?;
            if self.process.wait(grace).await.is_err() {
                self.process.kill();
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::is_of;

    #[test]
    fn images_are_found_by_repository() {
        for name in ["registry.k8s.io/e2e-test-images/agnhost", "agnhost"] {
            assert!(is_of("registry.k8s.io/e2e-test-images/agnhost:2.53", name), "{name}");
        }
        assert!(is_of("mariadb", "mariadb"));
        assert!(is_of("registry:5000/mariadb@sha256:00", "mariadb"));
        assert!(is_of("registry:5000/mariadb", "registry:5000/mariadb"));
        assert!(!is_of("mariadb-client:1", "mariadb"));
        assert!(!is_of("docker.io/library/pause:3", "registry.k8s.io/pause"));
    }
}
