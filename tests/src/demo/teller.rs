//! Prints the story and remembers what did not hold.

use std::{
    fmt::Display,
    io::{IsTerminal, Write},
    time::Instant,
};

/// Where lines of commentary are broken.
const WIDTH: usize = 100;

/// Tells a story on standard output.
#[derive(Debug)]
pub struct Teller {
    started: Instant,
    color: bool,
    step: u32,
    checks: u32,
    failures: Vec<String>,
}

impl Default for Teller {
    fn default() -> Self {
        Self::new()
    }
}

impl Teller {
    /// A teller; colours only on a terminal, and not when `NO_COLOR` is set.
    pub fn new() -> Self {
        let color = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { started: Instant::now(), color, step: 0, checks: 0, failures: Vec::new() }
    }

    /// What did not hold, with the number of its step.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// How many things were checked.
    pub fn checks(&self) -> u32 {
        self.checks
    }

    /// How many steps were told.
    pub fn steps(&self) -> u32 {
        self.step
    }

    /// When the story began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Begins the next step.
    pub fn step(&mut self, title: &str) {
        self.step += 1;
        let elapsed = self.started.elapsed().as_secs_f64();
        let head = format!("{:2}  {title}", self.step);
        let space = WIDTH.saturating_sub(head.chars().count());
        self.line(&format!(
            "\n{}{}",
            self.paint("1", &head),
            self.paint("2", &format!("{elapsed:space$.1} s"))
        ));
    }

    /// Says what is done, or what happens in the kernel.
    pub fn note(&self, text: &str) {
        for line in wrap(text, WIDTH - 4) {
            self.line(&format!("    {}", self.paint("2", &line)));
        }
    }

    /// A line as it is, below the present step.
    pub fn raw(&self, line: &str) {
        self.line(&format!("    {line}"));
    }

    /// Says whether something holds. `what` is a claim together with what was seen.
    pub fn check(&mut self, holds: bool, what: impl Display) {
        self.checks += 1;
        let what = what.to_string();
        if !holds {
            self.failures.push(format!("step {}: {what}", self.step));
        }
        let mark = if holds { self.paint("32", "✓") } else { self.paint("1;31", "✗") };
        for (position, line) in wrap(&what, WIDTH - 6).into_iter().enumerate() {
            let mark = if position == 0 { mark.as_str() } else { " " };
            self.line(&format!("    {mark} {line}"));
        }
    }

    /// Something that made the step end early.
    pub fn failed(&mut self, why: &str) {
        self.checks += 1;
        self.failures.push(format!("step {}: {why}", self.step));
        self.line(&format!("    {} {why}", self.paint("1;31", "✗")));
    }

    /// Text from elsewhere, such as a log.
    pub fn aside(&self, text: &str) {
        for line in text.lines() {
            self.line(&format!("    {} {line}", self.paint("2", "|")));
        }
    }

    /// A line.
    pub fn line(&self, line: &str) {
        // Through the macro, so that the test harness can capture it; a closed pipe is nobody listening any more.
        println!("{line}");
        let _unheard = std::io::stdout().flush();
    }

    /// `text` in this colour, on a terminal.
    pub fn paint(&self, color: &str, text: &str) -> String {
        if self.color { format!("\x1b[{color}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Breaks text between words.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines
            .last_mut()
            .filter(|line| line.is_empty() || line.chars().count() + 1 + word.chars().count() <= width);
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => line.extend([" ", word]),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_between_words() {
        assert_eq!(wrap("aa bb  cc", 5), ["aa bb", "cc"]);
        assert_eq!(wrap("longer than that", 3), ["longer", "than", "that"]);
        assert_eq!(wrap("", 3), [""]);
    }

    #[test]
    fn what_does_not_hold_is_remembered() {
        let mut teller = Teller::new();
        teller.step("a step");
        teller.check(true, "holds");
        teller.check(false, "does not");
        assert_eq!((teller.steps(), teller.checks()), (1, 2));
        assert_eq!(teller.failures(), ["step 1: does not"]);
    }
}
