//! What the user sees while something takes time: one line a step, with the time it took.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

/// How often a running step shows a sign of life: in place on a terminal, as a further line elsewhere.
const TERMINAL_TICK: Duration = Duration::from_secs(1);
const LOG_TICK: Duration = Duration::from_secs(15);

/// Prints what is about to happen with its reason, runs `work`, and prints how long that took.
pub(crate) fn step<T>(what: impl Display, why: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let what = what.to_string();
    let started = Instant::now();
    eprintln!("{} {what} ({why})", paint("36;1", "fetch"));
    let ticker = Ticker::start(what.clone(), started);
    let result = work();
    ticker.stop();
    let seconds = started.elapsed().as_secs_f64();
    match &result {
        Ok(_) => eprintln!("{} {what}, {seconds:.1} s", paint("32;1", " done")),
        Err(_) => eprintln!("{} {what}, after {seconds:.1} s", paint("33;1", "   no")),
    }
    result
}

/// Prints a headline that separates the parts of a longer task.
pub(crate) fn headline(text: impl Display) {
    eprintln!("{} {text}", paint("36;1", "=="));
}

/// Prints one line of information about a finished part.
pub(crate) fn note(text: impl Display) {
    eprintln!("{} {text}", paint("32;1", " done"));
}

/// Prints why a task failed.
pub(crate) fn error(error: &anyhow::Error) {
    eprintln!("{} {error:#}", paint("31;1", "error:"));
}

/// Wraps `text` into an ANSI colour, on a terminal that has not asked for none.
pub(crate) fn paint(code: &str, text: &str) -> String {
    if coloured() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Whether what is printed may carry colours.
pub(crate) fn coloured() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// A thread that shows that a step is still running.
struct Ticker {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Ticker {
    fn start(what: String, started: Instant) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let terminal = io::stderr().is_terminal();
            let tick = if terminal { TERMINAL_TICK } else { LOG_TICK };
            while stopped.recv_timeout(tick) == Err(RecvTimeoutError::Timeout) {
                let seconds = started.elapsed().as_secs();
                if terminal {
                    eprint!("\r      {what}, {seconds} s\r");
                    // A progress line that cannot be written harms nothing.
                    let _ = io::stderr().flush();
                } else {
                    eprintln!("      {what}, {seconds} s so far");
                }
            }
            if terminal {
                eprint!("\r\x1b[K");
            }
        });
        Self { stop, thread }
    }

    fn stop(self) {
        drop(self.stop);
        // The thread only prints; had it panicked, the step's own result still counts.
        let _ = self.thread.join();
    }
}
