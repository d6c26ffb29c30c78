//! `lb-agent top`: what is busy, looked at again and again.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::{cursor, execute, terminal};

use super::show::{self, Opened, Output};
use crate::dataplane::Counters;
use crate::observe::{Look, ServiceFilter, Top, TopOrder};
use crate::options::PinOptions;

/// Lines around the table on a terminal: title, summary, its titles, keys.
const LINES_AROUND: usize = 7;

/// Flags of `lb-agent top`.
#[derive(Clone, Debug, Args)]
pub(super) struct TopOptions {
    #[command(flatten)]
    pins: PinOptions,
    /// Output format; `json` is an object a line
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Only this Service: name, or namespace/name
    #[arg(short, long, value_name = "SERVICE")]
    service: Option<ServiceFilter>,
    /// Seconds between two looks
    #[arg(short = 'i', long, default_value_t = 1.0, value_name = "SECONDS", value_parser = interval)]
    interval: f64,
    /// End after so many intervals [default: when you press q, or Ctrl-C]
    #[arg(short = 'n', long, value_name = "NUMBER")]
    iterations: Option<u64>,
    /// What comes first
    #[arg(long, value_enum, default_value_t)]
    sort: TopOrder,
    /// Show endpoints instead of Services
    #[arg(short, long)]
    endpoints: bool,
    /// Rows to print; on a terminal as many as there is room for
    #[arg(long, default_value_t = 20, value_name = "NUMBER")]
    rows: usize,
}

fn interval(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds between 0.1 and 3600".to_owned()),
    }
}

/// What somebody at the keyboard wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    End,
    Sort,
    Endpoints,
    Pause,
}

fn wish(key: KeyEvent) -> Option<Wish> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Wish::End),
        KeyCode::Char('q') | KeyCode::Esc => Some(Wish::End),
        KeyCode::Char('s') => Some(Wish::Sort),
        KeyCode::Char('e') => Some(Wish::Endpoints),
        KeyCode::Char('p' | ' ') => Some(Wish::Pause),
        _ => None,
    }
}

/// The terminal as it is while `top` has it; given back when dropped, however that comes about.
struct Screen;

impl Screen {
    fn take() -> io::Result<Self> {
        terminal::enable_raw_mode()?;
        let screen = Self;
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = execute!(io::stdout(), cursor::Show, terminal::LeaveAlternateScreen);
        let _ = terminal::disable_raw_mode();
    }
}

/// What is looked at.
struct Watched {
    options: TopOptions,
    opened: Opened,
}

impl Watched {
    fn look(&self) -> anyhow::Result<Look> {
        Ok(Look::new(&self.opened.view(), &Counters::new(&self.opened.maps)?, self.options.service.as_ref())?)
    }
}

/// Shows rates until somebody has seen enough.
pub(super) fn top(options: TopOptions) -> anyhow::Result<()> {
    let opened = Opened::of(&options.pins)?;
    let live = options.output == Output::Table && io::stdout().is_terminal() && io::stdin().is_terminal();
    let watched = Watched { options, opened };
    if live { on_terminal(watched) } else { in_lines(&watched) }
}

fn in_lines(watched: &Watched) -> anyhow::Result<()> {
    let options = &watched.options;
    let mut before = (watched.look()?, Instant::now());
    let mut left = options.iterations.unwrap_or(u64::MAX);
    while left > 0 {
        left -= 1;
        std::thread::sleep(Duration::from_secs_f64(options.interval));
        let now = (watched.look()?, Instant::now());
        let top = now.0.since(&before.0, now.1 - before.1, options.sort);
        let goes_on = match options.output {
            Output::Json => {
                let mut line = serde_json::to_vec(&top).context("writing JSON")?;
                line.push(b'\n');
                show::write_more(&line)?
            }
            Output::Table => {
                let text = top.summary() + &top.table(options.endpoints, options.rows).render(false) + "\n";
                show::write_more(text.as_bytes())?
            }
        };
        if !goes_on {
            break;
        }
        before = now;
    }
    Ok(())
}

fn on_terminal(mut watched: Watched) -> anyhow::Result<()> {
    let screen = Screen::take().context("taking over the terminal")?;
    let mut before = (watched.look()?, Instant::now());
    let mut last = Top::default();
    let mut left = watched.options.iterations.unwrap_or(u64::MAX);
    let mut paused = false;
    while left > 0 {
        draw(&watched.options, &last, paused)?;
        let until = before.1 + Duration::from_secs_f64(watched.options.interval);
        match wait(until)? {
            Some(Wish::End) => break,
            Some(Wish::Sort) => watched.options.sort = watched.options.sort.next(),
            Some(Wish::Endpoints) => watched.options.endpoints = !watched.options.endpoints,
            Some(Wish::Pause) => paused = !paused,
            None => {
                let now = (watched.look()?, Instant::now());
                if !paused {
                    last = now.0.since(&before.0, now.1 - before.1, watched.options.sort);
                    left -= 1;
                }
                before = now;
            }
        }
    }
    drop(screen);
    Ok(())
}

/// The next key that means something, or nothing when the time has come or the terminal has another size.
fn wait(until: Instant) -> anyhow::Result<Option<Wish>> {
    while event::poll(until.saturating_duration_since(Instant::now())).context("waiting for a key")? {
        match event::read().context("reading a key")? {
            Event::Key(key) => {
                if let Some(wish) = wish(key) {
                    return Ok(Some(wish));
                }
            }
            Event::Resize(..) => return Ok(None),
            _ => {}
        }
    }
    Ok(None)
}

fn draw(options: &TopOptions, top: &Top, paused: bool) -> anyhow::Result<()> {
    let (columns, lines) = terminal::size().context("asking for the terminal's size")?;
    let room = usize::from(lines).saturating_sub(LINES_AROUND).max(1);
    let color = std::env::var_os("NO_COLOR").is_none();
    let what = if options.endpoints { "endpoints" } else { "Services" };
    let mut text = format!(
        "lb-agent top: {what} by {}, every {} s{}\n",
        options.sort.name(),
        options.interval,
        if paused { ", PAUSED" } else { "" }
    );
    text.push_str(&top.summary());
    text.push('\n');
    text.push_str(&top.table(options.endpoints, room).render(color));
    text.push_str("\nq quit   s sort by the next column   e endpoints or Services   p pause");
    let mut out = io::stdout().lock();
    execute!(out, cursor::MoveTo(0, 0)).context("writing to the terminal")?;
    for line in text.lines() {
        // In raw mode a line feed does not return to the first column.
        write!(out, "{}", cut(line, columns.into())).context("writing to the terminal")?;
        execute!(out, terminal::Clear(terminal::ClearType::UntilNewLine))
            .context("writing to the terminal")?;
        write!(out, "\r\n").context("writing to the terminal")?;
    }
    execute!(out, terminal::Clear(terminal::ClearType::FromCursorDown)).context("writing to the terminal")
}

/// A line that has room; one in bold type stays whole, because its end switches back.
fn cut(line: &str, columns: usize) -> String {
    if line.starts_with('\u{1b}') {
        line.to_owned()
    } else {
        line.chars().take(columns.saturating_sub(1)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_the_last_line_says() {
        let pressed = |code| wish(KeyEvent::new(code, KeyModifiers::NONE));
        assert_eq!(pressed(KeyCode::Char('q')), Some(Wish::End));
        assert_eq!(pressed(KeyCode::Char('s')), Some(Wish::Sort));
        assert_eq!(pressed(KeyCode::Char('e')), Some(Wish::Endpoints));
        assert_eq!(pressed(KeyCode::Char('p')), Some(Wish::Pause));
        assert_eq!(pressed(KeyCode::Char('c')), None);
        assert_eq!(wish(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Some(Wish::End));
    }

    #[test]
    fn intervals_are_bounded_and_lines_cut() {
        assert!(interval("0.5").is_ok() && interval("0").is_err() && interval("x").is_err());
        assert_eq!(cut("abcdef", 4), "abc");
    }
}
