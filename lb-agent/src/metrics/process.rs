//! The process itself, by the names that every Prometheus client has.

use std::fs;

/// The process at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Process {
    /// Seconds of CPU.
    pub(super) cpu: f64,
    /// Bytes of memory that are there.
    pub(super) resident: u64,
    /// Bytes of address space.
    pub(super) virtual_memory: u64,
    /// Open descriptors.
    pub(super) descriptors: usize,
    /// When it started, in seconds since 1970.
    pub(super) started: f64,
}

/// Ticks a second in /proc: `USER_HZ`, which is 100 on every machine that Linux still runs on.
const TICKS: f64 = 100.0;

impl Process {
    /// This process, now; `None` without /proc.
    pub(super) fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let system = fs::read_to_string("/proc/stat").ok()?;
        let boot = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        let status = fs::read_to_string("/proc/self/status").ok()?;
        Self::parse(&stat, boot, &status, fs::read_dir("/proc/self/fd").ok()?.count())
    }

    /// From the text of `stat` (proc_pid_stat(5)) and `status`.
    fn parse(stat: &str, boot: f64, status: &str, descriptors: usize) -> Option<Self> {
        // The second field is the program's name, in which anything may be.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // The first of these is the third of the page.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
        };
        Some(Self {
            cpu: (field(14)? + field(15)?) / TICKS,
            resident: kib("VmRSS:")?,
            virtual_memory: kib("VmSize:")?,
            descriptors,
            started: boot + field(22)? / TICKS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_those_of_the_manual_page() {
        let stat =
            "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 12345 999 42 18446744073709551615";
        let parsed = Process::parse(stat, 1000.0, "VmSize:\t  2 kB\nVmRSS:\t  1 kB\n", 9).unwrap();
        let expected =
            Process { cpu: 3.0, resident: 1024, virtual_memory: 2048, descriptors: 9, started: 1123.45 };
        assert_eq!(parsed, expected);
        let own = Process::read().unwrap();
        assert!(own.resident > 0 && own.descriptors > 2 && own.started > 1.7e9, "{own:?}");
    }
}
