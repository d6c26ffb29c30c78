//! The socket in the run directory: a question a connection, a line of JSON each way. Who may open it is root.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{interval, sleep, timeout};
use tracing::{debug, info};

use super::{Knob, Knobs, Question, socket_path};
use crate::health::Health;

/// How long a conversation may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest question.
const LONGEST: u64 = 64 * 1024;
/// How often it is looked whether the socket is still there.
const LOOK: Duration = Duration::from_secs(2);
/// Pause after an accept that failed for lack of something, descriptors for example.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Knobs(Vec<Knob>),
    Error(String),
}

/// The socket, open. It is removed when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Opens the socket of a run directory, which is made where it is missing. What an agent that was killed left is
    /// replaced.
    ///
    /// # Errors
    /// The directory cannot be made or written to, or another agent answers there (`AddrInUse`).
    pub fn open(run_dir: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(run_dir)?;
        let path = socket_path(run_dir);
        if StdStream::connect(&path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        // Nobody else gets at it before its mode is right.
        let closed = run_dir.join(format!(".{}", std::process::id()));
        let _ = fs::remove_dir_all(&closed);
        DirBuilder::new().mode(0o700).create(&closed)?;
        let listener = place(&closed.join("s"), &path);
        let _ = fs::remove_dir_all(&closed);
        Ok(Self { listener: listener?, path })
    }

    /// Answers until somebody removes the socket.
    pub async fn run(self, knobs: Knobs, health: Health) {
        let mut look = interval(LOOK);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = look.tick() => {
                    if self.path.exists() {
                        continue;
                    }
                    return;
                }
            };
            match accepted {
                Ok((stream, _)) => {
                    let (knobs, health) = (knobs.clone(), health.clone());
                    tokio::spawn(async move {
                        if let Ok(Err(error)) = timeout(PATIENCE, converse(stream, &knobs, &health)).await {
                            debug!(%error, "question about knobs not answered");
                        }
                    });
                }
                Err(error) => {
                    debug!(%error, "connection not accepted");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What stays is replaced by the next agent.
        let _ = fs::remove_file(&self.path);
    }
}

fn place(made: &Path, path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(made)?;
    fs::set_permissions(made, Permissions::from_mode(0o600))?;
    fs::rename(made, path)?;
    Ok(listener)
}

async fn converse(stream: UnixStream, knobs: &Knobs, health: &Health) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    (&mut stream).take(LONGEST).read_line(&mut line).await?;
    let question: Result<Question, _> = serde_json::from_str(&line);
    let answer = match question {
        Ok(Question::Live) if !health.proxy().healthy => {
            Err("not live: a change waits longer than --health-timeout for the kernel's tables".to_owned())
        }
        Ok(question) => {
            let answer = knobs.answer(&question);
            if let (Question::Set(_), Ok(now)) = (&question, &answer) {
                let now = now.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                info!(now, "knobs set");
            }
            answer
        }
        Err(error) => {
            Err(format!("the agent does not understand the question ({error}): is it of this version?"))
        }
    };
    let answer = answer.map_or_else(Answer::Error, Answer::Knobs);
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    stream.write_all(&text).await?;
    stream.shutdown().await
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error(
        "no lb-agent answers at {path}: is it running, and with this --run-dir? Without one there is nothing to \
         change; flags decide what the next one does"
    )]
    Nobody {
        /// Where it was asked.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the lb-agent at {path} does not answer")]
    BrokenOff {
        /// Where it was asked.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The agent refused, in its own words.
    #[error("{0}")]
    Refused(String),
}

/// Asks the agent of a run directory.
///
/// # Errors
/// Every kind of [`AskError`].
pub fn ask(run_dir: &Path, question: &Question) -> Result<Vec<Knob>, AskError> {
    let path = socket_path(run_dir);
    let stream =
        StdStream::connect(&path).map_err(|source| AskError::Nobody { path: path.clone(), source })?;
    let answer = talk(stream, question).map_err(|source| AskError::BrokenOff { path, source })?;
    match answer {
        Answer::Knobs(knobs) => Ok(knobs),
        Answer::Error(words) => Err(AskError::Refused(words)),
    }
}

fn talk(mut stream: StdStream, question: &Question) -> io::Result<Answer> {
    use std::io::{Read, Write};
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut text = serde_json::to_vec(question)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

#[cfg(test)]
mod tests {
    use super::super::{Initial, LogFilter};
    use super::*;
    use crate::dataplane::XdpMode;
    use crate::options::MetricsDetail;

    fn knobs() -> Knobs {
        Knobs::new(Initial {
            log: LogFilter::fixed("info"),
            xdp: XdpMode::Off,
            metrics_detail: MetricsDetail::Services,
            metrics_max_series: 1,
        })
    }

    async fn asked(run_dir: &Path, question: Question) -> Result<Vec<Knob>, AskError> {
        let run_dir = run_dir.to_owned();
        tokio::task::spawn_blocking(move || ask(&run_dir, &question)).await.unwrap()
    }

    #[tokio::test]
    async fn who_is_root_asks_a_running_agent_and_nobody_a_dead_one() {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = directory.path().join("run");
        let all = || Question::Get(Vec::new());
        assert!(matches!(asked(&run_dir, all()).await, Err(AskError::Nobody { .. })));
        // An agent that was killed leaves its socket behind.
        fs::create_dir(&run_dir).unwrap();
        drop(std::os::unix::net::UnixListener::bind(socket_path(&run_dir)).unwrap());
        assert!(matches!(asked(&run_dir, all()).await, Err(AskError::Nobody { .. })));

        let server = Server::open(&run_dir).unwrap();
        assert_eq!(fs::metadata(socket_path(&run_dir)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&run_dir).unwrap().count(), 1, "nothing but the socket");
        assert_eq!(Server::open(&run_dir).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let knobs = knobs();
        let serving = tokio::spawn(server.run(knobs.clone(), Health::default()));
        assert_eq!(asked(&run_dir, all()).await.unwrap(), knobs.all());
        let set = |value: &str| Question::Set(vec![("xdp".into(), value.into())]);
        assert_eq!(asked(&run_dir, set("generic")).await.unwrap()[0].value, "generic");
        assert_eq!(*knobs.xdp().borrow(), XdpMode::Generic);
        let refused = asked(&run_dir, set("fast")).await.unwrap_err();
        assert!(refused.to_string().starts_with("xdp=fast: expected off"), "{refused}");

        serving.abort();
        let _ = serving.await;
        assert!(!socket_path(&run_dir).exists());
    }

    #[tokio::test]
    async fn an_agent_that_does_not_keep_up_is_not_live() {
        let directory = tempfile::tempdir().unwrap();
        let health = Health::new(Duration::from_millis(20));
        let serving = tokio::spawn(Server::open(directory.path()).unwrap().run(knobs(), health.clone()));
        assert!(asked(directory.path(), Question::Live).await.is_ok());
        health.applying();
        sleep(Duration::from_millis(30)).await;
        let error = asked(directory.path(), Question::Live).await.unwrap_err();
        assert!(error.to_string().starts_with("not live"), "{error}");
        assert!(asked(directory.path(), Question::Get(Vec::new())).await.is_ok());
        serving.abort();
    }

    #[tokio::test]
    async fn who_says_nothing_or_nonsense_holds_up_nobody() {
        use std::io::{Read, Write};
        let directory = tempfile::tempdir().unwrap();
        let serving = tokio::spawn(Server::open(directory.path()).unwrap().run(knobs(), Health::default()));
        let path = socket_path(directory.path());
        let _silent = StdStream::connect(&path).unwrap();
        let talking = tokio::task::spawn_blocking(move || {
            let mut stream = StdStream::connect(path).unwrap();
            stream.write_all(b"what?\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        assert!(talking.await.unwrap().contains("does not understand"));
        serving.abort();
    }
}
