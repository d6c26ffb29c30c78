//! Names of images: what people write, and what containerd and docker make of it.

use std::fmt;
use std::str::FromStr;

/// Registry of names without one.
const DEFAULT_REGISTRY: &str = "docker.io";

/// A name such as `registry.example/team/lb-agent:0.1.0`; the tag may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    name: String,
    tag: Option<String>,
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "`{text}` is no image name such as lb-agent, lb-agent:1.2 or registry.example/lb-agent:1.2"
            )
        };
        // A colon before the last slash is that of the registry's port.
        let (name, tag) = match text.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (text, None),
        };
        let fits = |part: &str, more: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || (more.contains('A') && c == '_'))
                && part.chars().all(|c| {
                    c.is_ascii_lowercase()
                        || c.is_ascii_digit()
                        || "._-".contains(c)
                        || (more.contains('A') && c.is_ascii_uppercase())
                        || (more.contains(':') && (c == ':' || c.is_ascii_uppercase()))
                })
        };
        let mut parts = name.split('/');
        let first = parts.next().unwrap_or_default();
        let first_fits = fits(first, if name.contains('/') { ":" } else { "" });
        if !first_fits || !parts.all(|part| fits(part, "")) || !tag.is_none_or(|tag| fits(tag, "A")) {
            return Err(expected());
        }
        Ok(Self { name: name.to_owned(), tag: tag.map(str::to_owned) })
    }
}

impl Reference {
    /// The same, with this tag if it has none.
    pub(super) fn with_default_tag(&self, tag: &str) -> Self {
        Self { name: self.name.clone(), tag: Some(self.tag.clone().unwrap_or_else(|| tag.to_owned())) }
    }

    /// As people, manifests and `docker load` write it.
    pub(super) fn familiar(&self) -> String {
        self.to_string()
    }

    /// As containerd stores it, with registry: kubelet asks it for this form.
    pub(super) fn full(&self) -> String {
        let first = self.name.split('/').next().unwrap_or_default();
        let registry = self.name.contains('/') && (first.contains(['.', ':']) || first == "localhost");
        match (registry, self.name.contains('/')) {
            (true, _) => self.to_string(),
            (false, true) => format!("{DEFAULT_REGISTRY}/{self}"),
            (false, false) => format!("{DEFAULT_REGISTRY}/library/{self}"),
        }
    }

    /// The tag, empty when there is none.
    pub(super) fn tag(&self) -> &str {
        self.tag.as_deref().unwrap_or_default()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_containerd_does() {
        for (written, full) in [
            ("lb-agent:1", "docker.io/library/lb-agent:1"),
            ("team/lb-agent:1", "docker.io/team/lb-agent:1"),
            ("registry.example/lb-agent:1", "registry.example/lb-agent:1"),
            ("localhost/lb-agent:1", "localhost/lb-agent:1"),
            ("registry:5000/team/lb-agent:1", "registry:5000/team/lb-agent:1"),
        ] {
            assert_eq!(written.parse::<Reference>().unwrap().full(), full);
        }
    }

    #[test]
    fn a_tag_is_what_follows_the_last_colon_unless_that_is_a_port() {
        let tagged = |text: &str| text.parse::<Reference>().unwrap().with_default_tag("0.1.0").familiar();
        assert_eq!(tagged("lb-agent"), "lb-agent:0.1.0");
        assert_eq!(tagged("lb-agent:Edge_2"), "lb-agent:Edge_2");
        assert_eq!(tagged("registry:5000/lb-agent"), "registry:5000/lb-agent:0.1.0");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for wrong in
            ["", ":1", "Lb-Agent", "lb agent", "a//b", "/a", "a:", "a:-1", "a:b:c", "lb-agent@sha256:0"]
        {
            assert!(wrong.parse::<Reference>().is_err(), "{wrong}");
        }
    }
}
