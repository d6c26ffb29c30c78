//! The few elements of SVG that the charts are made of.

use std::fmt::Write as _;

use super::Colour;

/// For which surroundings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// Dark on white.
    Light,
    /// Light on black.
    Dark,
}

/// Which text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    Strong,
    Muted,
}

/// Where a text stands from its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Theme {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Light, Self::Dark];

    /// Last part of the name of a file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }

    pub(super) fn background(self) -> &'static str {
        self.pick("#ffffff", "#0d1117")
    }

    pub(super) fn grid(self) -> &'static str {
        self.pick("#e3e8ee", "#262c36")
    }

    /// A line that figures are compared with.
    pub(super) fn mark(self) -> &'static str {
        self.pick("#57606a", "#8b949e")
    }

    pub(super) fn ink(self, ink: Ink) -> &'static str {
        match ink {
            Ink::Strong => self.pick("#1f2328", "#e6edf3"),
            Ink::Muted => self.pick("#59636e", "#9198a1"),
        }
    }

    /// Okabe and Ito's colours, a little lighter on black.
    pub(super) fn fill(self, colour: Colour) -> &'static str {
        match colour {
            Colour::Ours => self.pick("#0072b2", "#3d9be0"),
            Colour::Second => self.pick("#56b4e9", "#86cbf2"),
            Colour::Third => self.pick("#009e73", "#2fbf94"),
            Colour::None => self.pick("#a3abb5", "#6e7681"),
            Colour::Iptables => self.pick("#d55e00", "#e8792a"),
            Colour::Nftables => self.pick("#e69f00", "#f0b429"),
        }
    }

    fn pick(self, light: &'static str, dark: &'static str) -> &'static str {
        match self {
            Self::Light => light,
            Self::Dark => dark,
        }
    }
}

/// A drawing, from its upper left corner.
pub(super) struct Canvas {
    theme: Theme,
    title: String,
    width: f64,
    height: f64,
    body: String,
}

impl Canvas {
    pub(super) fn new(theme: Theme, title: &str, width: f64, height: f64) -> Self {
        Self { theme, title: escape(title), width, height, body: String::new() }
    }

    pub(super) fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), radius: f64, fill: &str) {
        let _ = writeln!(
            self.body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="{radius}" fill="{fill}"/>"#
        );
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), stroke: &str, width: f64, dashed: bool) {
        let dashes = if dashed { r#" stroke-dasharray="4 3""# } else { "" };
        let _ = writeln!(
            self.body,
            r#"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" stroke="{stroke}" stroke-width="{width}"{dashes}/>"#,
            from.0, from.1, to.0, to.1
        );
    }

    /// A disc, or a square on its corner: told apart without colours.
    pub(super) fn dot(&mut self, (x, y): (f64, f64), radius: f64, fill: &str, corner: bool) {
        let _ = if corner {
            let (left, right, up, down) = (x - radius, x + radius, y - radius, y + radius);
            writeln!(
                self.body,
                r#"<path d="M{left:.1} {y:.1} L{x:.1} {up:.1} L{right:.1} {y:.1} L{x:.1} {down:.1} Z" fill="{fill}"/>"#
            )
        } else {
            writeln!(self.body, r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius}" fill="{fill}"/>"#)
        };
    }

    /// Text on its base line.
    pub(super) fn text(
        &mut self,
        (x, y): (f64, f64),
        text: &str,
        size: f64,
        ink: Ink,
        anchor: Anchor,
        bold: bool,
    ) {
        let weight = if bold { r#" font-weight="600""# } else { "" };
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        let (fill, text) = (self.theme.ink(ink), escape(text));
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" fill="{fill}"{weight}{anchor}>{text}</text>"#
        );
    }

    /// A figure that can be read on whatever is below it.
    pub(super) fn figure(&mut self, (x, y): (f64, f64), text: &str) {
        let (fill, halo, text) = (self.theme.ink(Ink::Strong), self.theme.background(), escape(text));
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" font-size="12" fill="{fill}" stroke="{halo}" stroke-width="4" stroke-linejoin="round" paint-order="stroke">{text}</text>"#
        );
    }

    pub(super) fn finish(self) -> String {
        let Self { theme, title, width, height, body } = self;
        let background = theme.background();
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" \
             font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\">\n\
             <title>{title}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"{background}\"/>\n{body}</svg>\n"
        )
    }
}

/// About how wide a text will be: fonts differ.
pub(super) fn width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * 0.57
}

/// A text in lines of at most so many pixels.
pub(super) fn wrapped(text: &str, size: f64, room: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(line, size) + width(word, size) + size * 0.57 <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
