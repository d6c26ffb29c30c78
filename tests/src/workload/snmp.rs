//! The kernel's own counters of a namespace, as `nstat` shows them.

use anyhow::Context as _;

use crate::netns::Namespace;

/// Packets with a wrong checksum that the protocols of a namespace received.
///
/// # Errors
/// The kernel's tables cannot be read.
pub async fn checksum_errors(at: &impl AsRef<Namespace>) -> anyhow::Result<u64> {
    let read = async {
        // The process's own namespace is another one: that of its first thread.
        ["snmp", "snmp6"].map(|table| std::fs::read_to_string(format!("/proc/thread-self/net/{table}")))
    };
    let mut sum = 0;
    for table in at.as_ref().run(read).await {
        sum += in_table(&table.context("reading the kernel's counters")?);
    }
    Ok(sum)
}

/// The sum of all counters of checksum errors in `/proc/net/snmp` or `/proc/net/snmp6`.
fn in_table(text: &str) -> u64 {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let pairs = lines.windows(2).flat_map(|pair| pair[0].iter().zip(&pair[1]));
    let in_columns =
        pairs.filter(|(name, _)| **name == "InCsumErrors").filter_map(|(_, value)| value.parse::<u64>().ok());
    let by_line = lines.iter().filter(|line| line.len() == 2 && line[0].ends_with("InCsumErrors"));
    in_columns.sum::<u64>() + by_line.filter_map(|line| line[1].parse::<u64>().ok()).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_errors_are_found_in_both_formats() {
        assert_eq!(in_table("Tcp: A InCsumErrors\nTcp: 5 3\nUdp: InCsumErrors\nUdp: 4\n"), 7);
        assert_eq!(in_table("Ip6InReceives 9\nUdp6InCsumErrors 2\n"), 2);
    }
}
