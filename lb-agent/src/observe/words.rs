//! Sentences beside names: what tools say that tell more than a table.

use std::fmt;

/// Columns of the names at the left.
const NAMES: usize = 11;
/// Columns of a line.
const LINE: usize = 110;

/// A name and its text, broken into lines.
pub(crate) fn entry(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    let name = format!("{name:NAMES$}");
    let mut line = String::new();
    let mut head = name.as_str();
    for word in text.split(' ') {
        if !line.is_empty() && NAMES + 1 + line.chars().count() + word.chars().count() > LINE {
            writeln!(f, "{head:NAMES$} {}", line.trim_end())?;
            line.clear();
            head = "";
        }
        line.push_str(word);
        line.push(' ');
    }
    writeln!(f, "{head:NAMES$} {}", line.trim_end())
}

/// A span of seconds in its two largest units.
pub(crate) fn span(total: u32) -> String {
    let (days, hours, minutes, seconds) = (total / 86_400, total / 3_600 % 24, total / 60 % 60, total % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{seconds}s"),
        (0, ..) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short() {
        let cases = [(0, "0s"), (59, "59s"), (61, "1m1s"), (3_661, "1h1m"), (90_000, "1d1h")];
        for (total, text) in cases {
            assert_eq!(span(total), text);
        }
    }

    #[test]
    fn long_texts_are_broken_and_stay_beside_their_name() {
        struct Told;
        impl fmt::Display for Told {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                entry(f, "name", &"word ".repeat(30))
            }
        }
        let text = Told.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(
            lines[0].starts_with("name        word") && lines[1].starts_with("            word"),
            "{text}"
        );
        assert!(lines.iter().all(|line| line.len() <= LINE && !line.ends_with(' ')), "{text}");
    }
}
