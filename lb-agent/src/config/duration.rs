//! Durations as the Kubernetes API writes them (`time.ParseDuration` of Go: `1h30m`, `250ms`).

use std::time::Duration;

/// Nanoseconds of each unit; longer names of a common beginning first.
const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12)];

/// The duration that a text means; `None` when it is none, or is negative.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut nanos = 0.0;
    while {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, factor) = UNITS.iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        nanos += number * factor;
        !rest.is_empty()
    } {}
    // Go's largest duration, 292 years.
    (nanos <= i64::MAX as f64).then(|| Duration::from_nanos(nanos as u64))
}

/// Whole seconds, rounded up: what is silent for a part of a second longer is silent.
pub(super) fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let millis = |text| parse(text).map(|duration| duration.as_millis());
        for (text, expected) in [
            ("0", 0),
            ("0s", 0),
            ("30s", 30_000),
            ("1h0m0s", 3_600_000),
            ("2h22m", 8_520_000),
            ("250ms", 250),
            ("1.5h", 5_400_000),
            ("+1m30.5s", 90_500),
            ("5000000ns", 5),
            ("1000us", 1),
            ("1000µs", 1),
        ] {
            assert_eq!(millis(text), Some(expected), "{text}");
        }
        for wrong in ["", "5", "s", "-1s", "1x", "1s2", "1..5s", "9999999h", "1 s"] {
            assert_eq!(millis(wrong), None, "{wrong}");
        }
        assert_eq!(seconds(parse("1500ms").unwrap()), 2);
        assert_eq!(seconds(parse("2s").unwrap()), 2);
    }
}
