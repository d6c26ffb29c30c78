//! A real `kube-apiserver` with its `etcd`, from the directory that the variable `KUBEBUILDER_ASSETS` names.
//!
//! The variable and the names of the programs are those of controller-runtime's `envtest`, whose archives of binaries fit.

use std::{
    fs::File,
    io::Read as _,
    net::{IpAddr, SocketAddr, TcpListener},
    ops::Range,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::json;
use tempfile::TempDir;

use super::{ApiHandle, Options, control::Control, front::Front, kubeconfig, remote::Remote, tls};
use crate::{
    lab::{Lab, Process},
    netns::{Namespace, lock},
};

/// The variable.
pub(crate) const ASSETS: &str = "KUBEBUILDER_ASSETS";
/// How long everything may take to come up. A cold start on a small machine takes some ten seconds.
const LIMIT: Duration = Duration::from_secs(90);
/// Where ports of the programs are taken from: Linux lets connections choose from 32768 on, node ports begin at 30000.
const PORTS: Range<u16> = 10_000..29_000;
/// Time between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// The programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assets {
    etcd: PathBuf,
    apiserver: PathBuf,
}

impl Assets {
    /// Those the variable names; `None` when it is not set.
    ///
    /// # Errors
    /// It names no directory, or one without the programs.
    pub(crate) fn from_env() -> anyhow::Result<Option<Self>> {
        let directory = std::env::var_os(ASSETS).filter(|value| !value.is_empty());
        directory.map(|directory| Self::in_directory(Path::new(&directory))).transpose()
    }

    fn in_directory(directory: &Path) -> anyhow::Result<Self> {
        ensure!(
            directory.is_dir(),
            "{ASSETS}={}: there is no such directory. Unset the variable to use the lab's own API server",
            directory.display()
        );
        let program = |name: &str| {
            let path = directory.join(name);
            ensure!(
                path.is_file(),
                "{ASSETS}={}: the directory has no program {name}. It takes both etcd and kube-apiserver; unset the \
                 variable to use the lab's own API server",
                directory.display()
            );
            Ok(path)
        };
        Ok(Self { etcd: program("etcd")?, apiserver: program("kube-apiserver")? })
    }
}

/// Where the programs run.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// On this machine, at loopback.
    Here,
    /// On the router of a lab, the API server at this address.
    Router(&'a Lab, SocketAddr),
}

impl Place<'_> {
    pub(crate) fn namespace(&self) -> anyhow::Result<Option<&Namespace>> {
        match self {
            Self::Here => Ok(None),
            Self::Router(lab, _) => lab.switch().context("the underlay has no router").map(Some),
        }
    }

    /// A listener at a port of loopback that nobody uses.
    pub(crate) fn loopback(&self) -> anyhow::Result<TcpListener> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok(match self.namespace()? {
            None => TcpListener::bind(any)?,
            Some(namespace) => namespace.tcp_listener(any)?,
        })
    }

    /// A port of loopback for a program that takes a number only: below those that connections choose from by themselves, and
    /// another one each time, so that nobody takes it in between.
    fn free_port(&self) -> anyhow::Result<u16> {
        static TURN: AtomicU32 = AtomicU32::new(0);
        for _ in 0..PORTS.len() {
            let turn = process::id().wrapping_mul(97).wrapping_add(TURN.fetch_add(1, Ordering::Relaxed));
            let port = PORTS.start + u16::try_from(turn % PORTS.len() as u32)?;
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let free = match self.namespace()? {
                None => TcpListener::bind(address),
                Some(namespace) => namespace.tcp_listener(address),
            };
            if free.is_ok() {
                return Ok(port);
            }
        }
        bail!("every port of {PORTS:?} is taken at loopback")
    }

    fn start(&self, argv: &[String], logs: &Path, name: &str) -> anyhow::Result<Program> {
        Ok(match self {
            Self::Here => Program::Own(Mutex::new(start_here(argv, &logs.join(name))?), logs.join(name)),
            Self::Router(lab, _) => Program::Lab(lab.spawn_on_router(argv, name)?),
        })
    }
}

fn start_here(argv: &[String], log: &Path) -> anyhow::Result<process::Child> {
    let (program, arguments) = argv.split_first().context("an empty command")?;
    let output = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    command.spawn().with_context(|| format!("starting {program}"))
}

/// A running program; it is killed, by its process id, when this is dropped.
enum Program {
    Own(Mutex<process::Child>, PathBuf),
    Lab(Process),
}

impl Program {
    fn has_ended(&self) -> bool {
        match self {
            Self::Own(child, _) => lock(child).try_wait().is_ok_and(|status| status.is_some()),
            Self::Lab(process) => process.exit_status().is_some(),
        }
    }

    fn log_tail(&self) -> String {
        let path = match self {
            Self::Own(_, log) => log.as_path(),
            Self::Lab(process) => process.log_path(),
        };
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        match read {
            Ok(_) => lines[lines.len().saturating_sub(15)..].join("\n"),
            Err(error) => format!("{}: {error}", path.display()),
        }
    }

    fn kill(&self) {
        match self {
            Self::Own(child, _) => {
                let mut child = lock(child);
                // Both fail only for a process that has ended already.
                let _ended = child.kill();
                let _reaped = child.wait();
            }
            Self::Lab(process) => process.kill(),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // One of the lab knows whether it is to be left standing.
        if matches!(self, Self::Own(..)) {
            self.kill();
        }
    }
}

/// A real API server.
pub(crate) struct RealServer {
    /// What agents speak to; none where there are no agents.
    front: Option<Front>,
    // The server before its store, without which it would only complain.
    _apiserver: Program,
    _etcd: Program,
    api: ApiHandle,
    address: SocketAddr,
    ca_pem: String,
    token: String,
    _data: TempDir,
}

impl RealServer {
    /// Starts both programs and waits until the server is ready and has its first objects.
    ///
    /// # Errors
    /// One cannot be started, ends, or takes too long: the error carries the end of its log.
    pub(crate) fn start(assets: &Assets, place: Place<'_>, options: &Options) -> anyhow::Result<Self> {
        let data = TempDir::with_prefix("lbt-apiserver-").context("a directory for the API server")?;
        let (client, peer) = (place.free_port()?, place.free_port()?);
        let etcd_url = format!("http://127.0.0.1:{client}");
        let etcd =
            place.start(&etcd_command(assets, data.path(), &etcd_url, peer), data.path(), "etcd.log")?;

        let address = match place {
            Place::Here => SocketAddr::from(([127, 0, 0, 1], place.free_port()?)),
            Place::Router(_, address) => address,
        };
        // Agents reach the front at the address that is told, and the server is at loopback behind it, at the same port.
        let behind = SocketAddr::from(([127, 0, 0, 1], address.port()));
        let mut addresses: Vec<IpAddr> = vec![[127, 0, 0, 1].into(), address.ip()];
        addresses.dedup();
        let signed = tls::sign(&["kubernetes".to_owned(), "localhost".to_owned()], &addresses)?;
        let file = |name: &str, text: &str| -> anyhow::Result<String> {
            let path = data.path().join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            Ok(path.to_string_lossy().into_owned())
        };
        let certificate = file("apiserver.crt", &signed.chain_pem())?;
        let key = file("apiserver.key", &signed.key_pem())?;
        let public = file("service-accounts.pub", &signed.public_key_pem())?;
        let tokens = file("tokens.csv", &format!("{},lab,lab,system:masters\n", options.token))?;
        // Nothing reads the server's own default of it at loopback: nobody else could reach it there.
        let (flagged, more) = ranges(&options.service_cidrs);
        let publish = matches!(place, Place::Router(..));
        let argv = [
            assets.apiserver.to_string_lossy().into_owned(),
            format!("--etcd-servers={etcd_url}"),
            format!("--bind-address={}", behind.ip()),
            format!("--secure-port={}", behind.port()),
            format!("--advertise-address={}", address.ip()),
            format!("--endpoint-reconciler-type={}", if publish { "lease" } else { "none" }),
            format!("--tls-cert-file={certificate}"),
            format!("--tls-private-key-file={key}"),
            format!("--service-account-key-file={public}"),
            format!("--service-account-signing-key-file={key}"),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--token-auth-file={tokens}"),
            "--authorization-mode=AlwaysAllow".to_owned(),
            format!("--service-cluster-ip-range={}", flagged.join(",")),
            format!("--service-node-port-range={}-{}", options.node_ports.start(), options.node_ports.end()),
            // There is no controller that makes service accounts, and none that calls nodes ready.
            "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition".to_owned(),
        ];
        let apiserver = place.start(&argv, data.path(), "kube-apiserver.log")?;
        let url = format!("https://{behind}");
        let remote =
            Remote::connect(place.namespace()?, &kubeconfig(&url, Some(&signed.ca_pem), &options.token))?;
        wait_until_ready(&remote, &[("etcd", &etcd), ("kube-apiserver", &apiserver)])?;
        add_ranges(&ApiHandle::remote(remote.clone()), &more)?;
        let ca_pem = signed.ca_pem.clone();
        let front = match place {
            Place::Here => None,
            Place::Router(..) => {
                let router = place.namespace()?.context("the underlay has no router")?;
                let listener =
                    router.tcp_listener(address).with_context(|| format!("listening on {address}"))?;
                let control = Control::new(options.token.clone(), true, options.bookmark_interval);
                Some(Front::start(listener, signed.into_tls()?, Arc::new(control), remote.clone())?)
            }
        };
        Ok(Self {
            front,
            _apiserver: apiserver,
            _etcd: etcd,
            api: ApiHandle::remote(remote),
            address,
            ca_pem,
            token: options.token.clone(),
            _data: data,
        })
    }

    pub(crate) fn api(&self) -> &ApiHandle {
        &self.api
    }

    /// The switches of the front.
    pub(crate) fn control(&self) -> Option<&Arc<Control>> {
        self.front.as_ref().map(Front::control)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    pub(crate) fn kubeconfig(&self, url: &str) -> String {
        kubeconfig(url, Some(&self.ca_pem), &self.token)
    }
}

/// The ranges of cluster IPs that the flag takes (one of each family), and the others.
fn ranges(all: &[String]) -> (Vec<String>, Vec<String>) {
    let is_v6 = |range: &String| range.contains(':');
    let first = |range: &String| all.iter().find(|it| is_v6(it) == is_v6(range)) == Some(range);
    all.iter().cloned().partition(first)
}

/// Tells the server of more ranges, and waits until addresses can be taken from them.
fn add_ranges(api: &ApiHandle, ranges: &[String]) -> anyhow::Result<()> {
    for (number, range) in ranges.iter().enumerate() {
        let name = format!("range-{number}");
        api.create(&json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
            "spec": {"cidrs": [range]},
        }))?;
    }
    Ok(())
}

fn etcd_command(assets: &Assets, data: &Path, url: &str, peer: u16) -> Vec<String> {
    let peer = format!("http://127.0.0.1:{peer}");
    vec![
        assets.etcd.to_string_lossy().into_owned(),
        format!("--data-dir={}", data.join("etcd").display()),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        // Nobody needs these objects after a power failure.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ]
}

/// Waits until the server says so, and the namespaces and the Service that it makes itself are there.
fn wait_until_ready(remote: &Remote, programs: &[(&str, &Program)]) -> anyhow::Result<()> {
    let begin = Instant::now();
    let api = ApiHandle::remote(remote.clone());
    let made = [
        ("namespaces", "", "default"),
        ("namespaces", "", "kube-system"),
        ("services", "default", "kubernetes"),
    ];
    loop {
        let outcome = remote.is_ready().and_then(|()| {
            made.iter().try_for_each(|(plural, namespace, name)| api.value(plural, namespace, name).map(drop))
        });
        let Err(error) = outcome else { return Ok(()) };
        for (name, program) in programs {
            if program.has_ended() {
                bail!("{name} has ended; its log ends:\n{}", program.log_tail());
            }
        }
        if begin.elapsed() > LIMIT {
            let logs: Vec<String> = programs
                .iter()
                .map(|(name, it)| format!("the log of {name} ends:\n{}", it.log_tail()))
                .collect();
            bail!("the API server is not ready after {LIMIT:?}: {error}\n{}", logs.join("\n"));
        }
        thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_missing_or_incomplete_is_an_error_that_says_so() {
        let directory = TempDir::new().unwrap();
        let missing = directory.path().join("nowhere");
        let error = Assets::in_directory(&missing).unwrap_err().to_string();
        assert!(error.contains("nowhere") && error.contains("no such directory"), "{error}");
        std::fs::write(directory.path().join("etcd"), "").unwrap();
        let error = Assets::in_directory(directory.path()).unwrap_err().to_string();
        assert!(error.contains("no program kube-apiserver"), "{error}");
        std::fs::write(directory.path().join("kube-apiserver"), "").unwrap();
        assert!(Assets::in_directory(directory.path()).is_ok());
    }

    /// Programs that fail are reported with what they said, long before the time is over.
    #[test]
    fn programs_that_end_at_once_are_reported_with_their_log() {
        use std::os::unix::fs::PermissionsExt as _;

        let directory = TempDir::new().unwrap();
        for (name, script) in [
            ("etcd", "#!/bin/sh\nexec sleep 60\n"),
            ("kube-apiserver", "#!/bin/sh\necho no such flag: $1\nexit 3\n"),
        ] {
            let path = directory.path().join(name);
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let assets = Assets::in_directory(directory.path()).unwrap();
        let begin = Instant::now();
        let Err(error) = RealServer::start(&assets, Place::Here, &Options::default()) else {
            panic!("that cannot work");
        };
        let error = error.to_string();
        assert!(error.contains("kube-apiserver has ended"), "{error}");
        assert!(error.contains("no such flag: --etcd-servers=http://127.0.0.1:"), "{error}");
        assert!(begin.elapsed() < LIMIT / 2);
    }
}
