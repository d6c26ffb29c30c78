//! Source ports of masqueraded flows: such as no socket of the node chooses by itself.

use std::fs;
use std::ops::RangeInclusive;

use anyhow::Context;

use super::bad_configuration;
use crate::options::NodeOptions;

/// Ports below belong to servers by convention (`IPPORT_RESERVED`), and filters treat them so.
const FIRST: u16 = 1024;
/// What makes do: as many flows to one endpoint's port at a time.
const ENOUGH: usize = 4096;
const LOCAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The ports that flags and kernel settings say.
pub(super) fn ports(options: &NodeOptions) -> anyhow::Result<RangeInclusive<u16>> {
    if let Some(range) = &options.masquerade_ports {
        return Ok(range.0.clone());
    }
    let text = fs::read_to_string(LOCAL_PORTS).with_context(|| format!("reading {LOCAL_PORTS}"))?;
    let local = parse(&text).with_context(|| format!("{LOCAL_PORTS} reads `{}`", text.trim()))?;
    beside(&local)
        .with_context(|| {
            format!(
                "the node's sockets use all ports from {} to {}: keep some for masqueraded flows with \
                 --masquerade-ports, and out of net.ipv4.ip_local_port_range",
                local.start(),
                local.end()
            )
        })
        .map_err(bad_configuration)
}

fn parse(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(first..=last)
}

/// The ports below the local ones, or, where these are few, the more numerous of those below and above.
fn beside(local: &RangeInclusive<u16>) -> Option<RangeInclusive<u16>> {
    let below = FIRST..=local.start().saturating_sub(1);
    let above = local.end().checked_add(1).map(|first| first.max(FIRST)..=u16::MAX);
    let above = above.unwrap_or(RangeInclusive::new(1, 0));
    let chosen = if below.len() >= ENOUGH || below.len() >= above.len() { below } else { above };
    (!chosen.is_empty()).then_some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masqueraded_flows_use_ports_that_no_socket_chooses() {
        let cases = [
            ("32768\t60999\n", Some(1024..=32767)),
            ("10000 65535", Some(1024..=9999)),
            ("5000 60999", Some(60_999 + 1..=65_535)),
            ("1024 60999", Some(61_000..=65_535)),
            ("100 900", Some(1024..=65_535)),
            ("1024 65535", None),
            ("1100 65535", Some(1024..=1099)),
        ];
        for (text, expected) in cases {
            assert_eq!(beside(&parse(text).unwrap()), expected, "{text}");
        }
        assert_eq!(parse("32768"), None);
    }
}
