//! Child processes inside namespaces: started, watched, and killed by their process id.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context;

use super::run::Run;
use crate::netns::{Namespace, lock, sys};

/// What a process sees and where it counts.
#[derive(Default)]
pub(crate) struct Surroundings<'a> {
    /// A file that takes the place of `/etc/resolv.conf`, in a mount namespace of the process's own.
    pub(crate) resolv_conf: Option<&'a Path>,
    /// The cgroup v2 directory the process is moved to before it starts.
    pub(crate) cgroup: Option<&'a Path>,
}

/// A command that will run inside `namespace`.
///
/// # Errors
/// `argv` is empty or a file of the surroundings cannot be opened.
pub(crate) fn command(
    namespace: &Namespace,
    surroundings: &Surroundings<'_>,
    argv: &[String],
    env: &[(String, String)],
) -> anyhow::Result<Command> {
    let (program, arguments) = argv.split_first().context("an empty command")?;
    let mut command = Command::new(program);
    command.args(arguments).envs(env.iter().map(|(key, value)| (key, value)));
    let netns = OwnedFd::from(namespace.file().try_clone()?);
    let mounts = surroundings.resolv_conf.map(resolv_conf_mount).transpose()?;
    let cgroup = surroundings
        .cgroup
        .map(|path| fs::OpenOptions::new().write(true).open(path.join("cgroup.procs")))
        .transpose()?;
    let prepare = move || -> io::Result<()> {
        if let Some(mut cgroup) = cgroup.as_ref() {
            // "0" is the writing process itself.
            cgroup.write_all(b"0")?;
        }
        sys::enter_netns(netns.as_fd())?;
        if let Some((source, target)) = &mounts {
            sys::unshare(libc::CLONE_NEWNS)?;
            sys::mount(c"", c"/", None, libc::MS_REC | libc::MS_PRIVATE)?;
            sys::mount(source, target, None, libc::MS_BIND)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure only makes system calls on descriptors and strings prepared before; it
    // neither allocates nor takes locks.
    unsafe { command.pre_exec(prepare) };
    Ok(command)
}

/// Source and target of the bind mount that gives a process its `/etc/resolv.conf`.
fn resolv_conf_mount(source: &Path) -> anyhow::Result<(CString, CString)> {
    let target =
        fs::canonicalize("/etc/resolv.conf").context("this machine has no /etc/resolv.conf to cover")?;
    Ok((sys::c_path(source)?, sys::c_path(&target)?))
}

/// Runs a command to its end and returns its output; kills it after `limit`.
///
/// # Errors
/// The program cannot be started, or the time was over.
pub(crate) async fn output(command: Command, limit: Duration) -> anyhow::Result<Output> {
    let what = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true).stdin(Stdio::null());
    tokio::time::timeout(limit, command.output())
        .await
        .with_context(|| format!("{what} took longer than {limit:?}"))?
        .with_context(|| format!("running {what}"))
}

/// A child process and the file its output goes to.
pub(crate) struct Running {
    pid: u32,
    child: Mutex<Child>,
}

impl Running {
    /// A child that was just started.
    pub(crate) fn new(child: Child) -> Self {
        Self { pid: child.id(), child: Mutex::new(child) }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The exit status, once it has ended.
    pub(crate) fn exit_status(&self) -> Option<ExitStatus> {
        lock(&self.child).try_wait().ok().flatten()
    }

    /// Sends a signal, unless the process has ended already.
    pub(crate) fn signal(&self, signal: libc::c_int) -> anyhow::Result<()> {
        let mut child = lock(&self.child);
        // While the child has not been waited for, its process id cannot belong to anything else.
        if child.try_wait()?.is_none() {
            sys::kill(self.pid, signal)?;
        }
        Ok(())
    }

    /// Kills the process and waits for its end.
    pub(crate) fn kill(&self) {
        let mut child = lock(&self.child);
        // Both fail only for a process that has ended already.
        let _ended = child.kill();
        let _reaped = child.wait();
    }

    /// Waits for the end, at most `limit`.
    pub(crate) async fn wait(&self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.exit_status() {
                return Ok(status);
            }
            anyhow::ensure!(begin.elapsed() < limit, "process {} still runs after {limit:?}", self.pid);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A long-running process in a namespace. It is killed (by its process id) when the handle is dropped, unless the lab is
/// kept standing.
pub struct Process {
    running: Arc<Running>,
    run: Arc<Run>,
    log: PathBuf,
}

impl Process {
    /// Starts a command with its output appended to `log`.
    pub(crate) fn start(mut command: Command, run: &Arc<Run>, log: PathBuf) -> anyhow::Result<Self> {
        let out = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let running = Arc::new(Running::new(child));
        run.register(&running)?;
        Ok(Self { running, run: Arc::clone(run), log })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// The file with the process's standard output and standard error.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The exit status, once it has ended.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.running.exit_status()
    }

    /// Sends a signal (`libc::SIGTERM`, ...).
    ///
    /// # Errors
    /// The kernel refused.
    pub fn signal(&self, signal: i32) -> anyhow::Result<()> {
        self.running.signal(signal)
    }

    /// Waits for the process to end, at most `limit`.
    ///
    /// # Errors
    /// It still runs then.
    pub async fn wait(&self, limit: Duration) -> anyhow::Result<ExitStatus> {
        self.running.wait(limit).await
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&self) {
        self.running.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.run.is_kept() {
            self.running.kill();
        }
    }
}
