//! Runs a test binary, follows its output, and ends it when it falls silent for too long.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::output;

/// A test binary that prints no line for so long hangs.
const SILENCE: Duration = Duration::from_secs(600);

/// How often a sign of life is given while nothing finishes.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// How often the end of the process is looked for: its output may be held open by a process it left behind.
const POLL: Duration = Duration::from_millis(50);

/// How long output may still trickle in after the process ended.
const AFTERMATH: Duration = Duration::from_millis(300);

/// How many lines of standard error are shown of a failed binary.
const STDERR_LINES: usize = 200;

/// How a binary ended, and all it said.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    pub(crate) success: bool,
    /// The end in words, for the list of failures.
    pub(crate) how: String,
    pub(crate) stdout: String,
    pub(crate) stderr: Vec<String>,
}

impl Ended {
    /// The last lines of standard error.
    pub(crate) fn stderr_tail(&self) -> String {
        let start = self.stderr.len().saturating_sub(STDERR_LINES);
        self.stderr[start..].concat()
    }
}

enum Line {
    Out(String),
    Err(String),
}

/// Runs `command` to its end. With `each_test`, every finished test is shown when it finishes.
pub(crate) fn run(label: &str, mut command: Command, each_test: bool) -> Result<Ended> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A panic's message and place tell what a test found; forty frames of runtime and harness around it hide them.
    if std::env::var_os("RUST_BACKTRACE").is_none_or(|wanted| wanted != "full") {
        command.env("RUST_BACKTRACE", "0");
    }
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("run {program}"))?;
    let lines = lines_of(&mut child);
    let mut ended = Ended::default();
    let (mut last_line, mut last_sign) = (Instant::now(), Instant::now());
    let mut exited: Option<Instant> = None;
    loop {
        match lines.recv_timeout(POLL) {
            Ok(line) => {
                last_line = Instant::now();
                if show(&line, each_test) {
                    last_sign = last_line;
                }
                match line {
                    Line::Out(text) => ended.stdout.push_str(&text),
                    Line::Err(text) => ended.stderr.push(text),
                }
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        match exited {
            Some(at) if at.elapsed() > AFTERMATH => break,
            Some(_) => {}
            None => exited = child.try_wait()?.map(|_| Instant::now()),
        }
        if last_sign.elapsed() > SIGN_OF_LIFE {
            last_sign = Instant::now();
            eprintln!("      {label} still runs");
        }
        if exited.is_none() && last_line.elapsed() > SILENCE {
            child.kill().with_context(|| format!("end {label}"))?;
            child.wait()?;
            ended.how = format!("ended by us after {} s of silence", SILENCE.as_secs());
            return Ok(ended);
        }
    }
    let status = child.wait()?;
    ended.success = status.success();
    ended.how = format!("ended with {status}");
    Ok(ended)
}

/// What libtest says of a slow test, which may be one that hangs.
const SLOW: &str = "has been running for over";

/// Shows a line that tells the end of a test, or that it is slow. Returns whether it did.
fn show(line: &Line, each_test: bool) -> bool {
    let Line::Out(text) = line else { return false };
    let finished = if each_test { output::test_line(text) } else { None };
    match finished {
        Some((name, outcome)) => eprintln!("      test {name} ...{}", outcome.trim_end()),
        None if text.contains(SLOW) => eprint!("      {text}"),
        None => return false,
    }
    true
}

/// Both output streams line by line, as they come.
fn lines_of(child: &mut Child) -> Receiver<Line> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        let sender = sender.clone();
        thread::spawn(move || forward(stdout, |text| sender.send(Line::Out(text)).is_ok()));
    }
    if let Some(stderr) = child.stderr.take() {
        thread::spawn(move || forward(stderr, |text| sender.send(Line::Err(text)).is_ok()));
    }
    receiver
}

fn forward(stream: impl Read, send: impl Fn(String) -> bool) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    // An output that cannot be read ends like one that is closed: the exit status tells the rest.
    while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        if !send(String::from_utf8_lossy(&line).into_owned()) {
            return;
        }
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Ended {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run("sh", command, false).unwrap()
    }

    #[test]
    fn output_and_end_are_told() {
        let ended = shell("echo one; echo two >&2; printf three; exit 3");
        assert_eq!(ended.stdout, "one\nthree");
        assert_eq!(ended.stderr_tail(), "two\n");
        assert!(!ended.success);
        assert!(ended.how.contains('3'), "{}", ended.how);
        assert!(shell("true").success);
    }

    #[test]
    fn a_process_left_behind_holds_nobody_up() {
        let started = Instant::now();
        let ended = shell("sleep 5 & echo done");
        assert_eq!(ended.stdout, "done\n");
        assert!(started.elapsed() < Duration::from_secs(4));
    }
}
