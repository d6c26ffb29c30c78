//! The real `lb-agent` as a child process on a lab node.

use std::{
    env, fmt, fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::ExitStatus,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{
    node::Node,
    process::{self, Process, Surroundings},
};
use crate::netns::lock;

/// How long an agent may take until it is ready.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// How long an agent may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How to start an agent.
#[derive(Debug, Clone, Default)]
pub struct AgentOptions {
    /// The arguments, beginning with the subcommand (`["run", "--manifests", "dir"]`).
    pub args: Vec<String>,
    /// Environment variables on top of this process's own.
    pub env: Vec<(String, String)>,
    /// Another program than the one [`agent_binary`] finds.
    pub binary: Option<PathBuf>,
    /// Do not append `--ready-file PATH`; readiness is then a line of output containing the word `ready`.
    pub no_ready_file: bool,
}

impl AgentOptions {
    /// An agent with these arguments.
    pub fn new<A: Into<String>>(args: impl IntoIterator<Item = A>) -> Self {
        Self { args: args.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// An agent of a node that serves what a directory of manifests says.
    pub fn of_manifests(node: &Node, manifests: &Path, forwarding: impl fmt::Display) -> Self {
        Self::new([
            "run".to_owned(),
            format!("--manifests={}", manifests.display()),
            format!("--bpf-root={}", node.bpffs().join("lb-agent").display()),
            format!("--forwarding={forwarding}"),
            format!("--node-name={}", node.name()),
        ])
    }
}

/// The `lb-agent` to run: the file that `LB_AGENT_BIN` names, else the one built into the target directory that the
/// current executable was built into.
///
/// # Errors
/// There is none.
pub fn agent_binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = env::var_os("LB_AGENT_BIN").map(PathBuf::from) {
        anyhow::ensure!(path.is_file(), "LB_AGENT_BIN={} is not a file", path.display());
        return Ok(path);
    }
    program_beside("lb-agent").map(PathBuf::from).context("or name it in LB_AGENT_BIN")
}

/// A program built into the target directory that the current executable was built into.
///
/// # Errors
/// It is not there.
pub(crate) fn program_beside(name: &str) -> anyhow::Result<String> {
    let own = env::current_exe()?;
    // target/<profile>/x, target/<profile>/deps/x, target/<profile>/examples/x
    let found =
        own.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.is_file());
    let found = found.with_context(|| {
        format!("no {name} beside {}: build it (cargo build --bin {name})", own.display())
    })?;
    Ok(found.to_string_lossy().into_owned())
}

/// An agent running on a node (or ended). Dropping the handle kills it; in a panicking thread its log is printed first.
pub struct AgentHandle {
    node: Node,
    options: AgentOptions,
    binary: PathBuf,
    ready_file: PathBuf,
    /// Where the present process's part of the log begins.
    log_start: usize,
    process: Process,
}

impl Node {
    /// Starts `lb-agent` on this node: in its network namespace, but in this process's mount namespace, so that paths on
    /// the bpffs mean the same to it and to the test. Does not wait for readiness.
    ///
    /// # Errors
    /// There is no agent binary, or it cannot be started.
    pub fn start_agent(&self, options: AgentOptions) -> anyhow::Result<AgentHandle> {
        let binary = options.binary.clone().map_or_else(agent_binary, Ok)?;
        let number = {
            let mut state = lock(&self.0.state);
            state.agents += 1;
            state.agents
        };
        let name = format!("{}-agent{number}", self.name());
        let ready_file = self.0.run.state().join(format!("{name}.ready"));
        let log = self.log_dir().join(format!("{name}.log"));
        let process = launch(self, &options, &binary, &ready_file, &log)?;
        Ok(AgentHandle { node: self.clone(), options, binary, ready_file, log_start: 0, process })
    }

    /// Runs `lb-agent` with these arguments to its end on this node (`["cleanup"]`, `["services", "-o", "json"]`).
    ///
    /// # Errors
    /// There is no agent binary, it cannot be started, or it takes longer than `limit`. An exit code other than 0 is no
    /// error.
    pub async fn agent_command(
        &self,
        args: &[&str],
        limit: Duration,
    ) -> anyhow::Result<std::process::Output> {
        let binary = agent_binary()?.to_string_lossy().into_owned();
        let argv: Vec<&str> = std::iter::once(binary.as_str()).chain(args.iter().copied()).collect();
        self.exec(&argv, &[], limit).await
    }
}

/// The run directory of the agent with that ready file.
fn run_dir(ready_file: &Path) -> PathBuf {
    ready_file.with_extension("run")
}

fn launch(
    node: &Node,
    options: &AgentOptions,
    binary: &Path,
    ready_file: &Path,
    log: &Path,
) -> anyhow::Result<Process> {
    if ready_file.exists() {
        fs::remove_file(ready_file)?;
    }
    let mut argv = vec![binary.to_string_lossy().into_owned()];
    argv.extend(options.args.iter().cloned());
    if !options.no_ready_file {
        argv.extend(["--ready-file".to_owned(), ready_file.to_string_lossy().into_owned()]);
    }
    let surroundings = Surroundings { resolv_conf: None, cgroup: Some(node.cgroup()) };
    // A node's processes are those of its cgroup, not of the whole machine.
    // And what it leaves in files is its own, several agents of one machine being tested at once.
    let mut env = vec![
        ("LB_AGENT_CGROUP".to_owned(), node.cgroup().to_string_lossy().into_owned()),
        ("LB_AGENT_RUN_DIR".to_owned(), run_dir(ready_file).to_string_lossy().into_owned()),
    ];
    env.extend(options.env.iter().cloned());
    let command = process::command(node.namespace(), &surroundings, &argv, &env)?;
    Process::start(command, &node.0.run, log.to_owned())
}

impl AgentHandle {
    /// The node the agent runs on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The process id of the present process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its run directory (`--run-dir`), where `lb-agent set` reaches it.
    pub fn run_dir(&self) -> PathBuf {
        run_dir(&self.ready_file)
    }

    /// Everything the agent has written, over all restarts.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Where that is.
    pub fn log_path(&self) -> &Path {
        self.process.log_path()
    }

    /// The exit status, once the agent has ended.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.process.exit_status()
    }

    /// Waits until the agent says that it serves: its readiness file exists, or it wrote a line containing the word
    /// `ready`.
    ///
    /// # Errors
    /// It ended, or is not ready after 20 seconds; the error carries its log.
    pub async fn wait_ready(&self) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            if self.is_ready() {
                return Ok(());
            }
            if let Some(status) = self.exit_status() {
                bail!(
                    "the agent on {} ended ({status}) before it was ready:\n{}",
                    self.node.name(),
                    self.log()
                );
            }
            if begin.elapsed() > READY_LIMIT {
                bail!(
                    "the agent on {} is not ready after {READY_LIMIT:?}:\n{}",
                    self.node.name(),
                    self.log()
                );
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Whether the present process has said that it serves.
    pub fn is_ready(&self) -> bool {
        if !self.options.no_ready_file {
            return self.ready_file.exists();
        }
        let log = self.process.log();
        let own = log.get(self.log_start..).unwrap_or_default();
        own.split(|character: char| !character.is_alphanumeric()).any(|word| word == "ready")
    }

    /// Ends the agent as Kubernetes does, with SIGTERM, and returns how it ended.
    ///
    /// # Errors
    /// It still runs after 10 seconds.
    pub async fn sigterm(&self) -> anyhow::Result<ExitStatus> {
        self.process.signal(libc::SIGTERM)?;
        self.process.wait(STOP_LIMIT).await.with_context(|| format!("SIGTERM had no effect:\n{}", self.log()))
    }

    /// Kills the agent with SIGKILL and waits until it is gone.
    pub fn sigkill(&self) {
        self.process.kill();
    }

    /// Freezes the agent (SIGSTOP), for tests of what happens meanwhile.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.process.signal(libc::SIGSTOP)
    }

    /// Lets a frozen agent go on.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.process.signal(libc::SIGCONT)
    }

    /// Starts the agent again with the same arguments, after ending it if it still runs (SIGKILL). Does not wait for
    /// readiness.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.sigkill();
        self.log_start = self.process.log().len();
        let log = self.process.log_path().to_owned();
        self.process = launch(&self.node, &self.options, &self.binary, &self.ready_file, &log)?;
        Ok(())
    }
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        let crashed =
            self.exit_status().is_some_and(|status| status.core_dumped() || status.code() == Some(101));
        if thread::panicking() || crashed {
            eprintln!(
                "---- log of the agent on {} ----\n{}---- end of log ----",
                self.node.name(),
                self.log()
            );
        }
    }
}
