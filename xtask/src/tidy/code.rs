//! A view of Rust text without comments and literals, of the same lines and columns.

/// Replaces the inside of comments, string and character literals by spaces.
pub(super) fn only(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut previous = ' ';
    while let Some(first) = rest.chars().next() {
        let length = skipped(rest, previous);
        let (taken, remaining) = rest.split_at(if length == 0 { first.len_utf8() } else { length });
        if length == 0 {
            out.push(first);
            previous = first;
        } else {
            out.extend(taken.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            previous = ' ';
        }
        rest = remaining;
    }
    out
}

/// Length in bytes of the comment or literal that `text` starts with, or 0.
fn skipped(text: &str, previous: char) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    if let Some(inside) = text.strip_prefix('"') {
        return 1 + quoted(inside, '"');
    }
    if text.starts_with('\'') {
        return character(text);
    }
    // The prefix of a raw string, unless it is the end of a name.
    if !(previous.is_alphanumeric() || previous == '_') {
        return raw_string(text);
    }
    0
}

/// Block comments nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// Length up to and with the closing quote, counting from behind the opening one.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// A character literal, or 0 for a lifetime.
fn character(text: &str) -> usize {
    let inside = &text[1..];
    let mut chars = inside.chars();
    match (chars.next(), chars.next()) {
        (Some('\\'), _) => 1 + quoted(inside, '\''),
        (Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 0,
    }
}

/// `r"…"`, `r#"…"#`, `br"…"`, `cr"…"`, or 0. Literals with a plain prefix (`b"…"`) are met at their quote.
fn raw_string(text: &str) -> usize {
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
        text.strip_prefix(prefix).is_some_and(|rest| rest.trim_start_matches('#').starts_with('"'))
    });
    let Some(prefix) = prefix else { return 0 };
    let hashes = text[prefix.len()..].chars().take_while(|c| *c == '#').count();
    let open = prefix.len() + hashes + 1;
    let close = format!("\"{}", "#".repeat(hashes));
    text[open..].find(&close).map_or(text.len(), |at| open + at + close.len())
}

/// Whether `word` occurs in `line` not as a part of a longer name.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(part)
            && !line[at + word.len()..].chars().next().is_some_and(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_vanish_lines_stay() {
        for (text, code) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            ("f(\"x \\\" y\") g", "f(        ) g"),
            ("'a' b '\\'' c 'd", "    b      c 'd"),
            ("r#\"x\" y\"# z", "          z"),
            ("br\"x\" y b\"z\"", "      y b   "),
            ("hour\"x\"", "hour   "),
            ("&'static str", "&'static str"),
            ("\"a\nb\" c", "  \n   c"),
            ("\"open", "     "),
            ("r#type", "r#type"),
        ] {
            assert_eq!(only(text), code, "{text}");
        }
    }

    #[test]
    fn words() {
        assert!(has_word("unsafe { x }", "unsafe"));
        assert!(has_word("x=unsafe{", "unsafe"));
        assert!(!has_word("unsafe_code", "unsafe"));
        assert!(!has_word("not_unsafe", "unsafe"));
    }
}
