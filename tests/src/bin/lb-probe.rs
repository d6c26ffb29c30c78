//! A client process: the lab starts it on nodes and in pods and tells it over pipes what to ask whom.
//!
//! It is a process of its own because the kernel counts sockets to the cgroup of the process that made them: servers and
//! clients inside the test process belong to no node's cgroup, this one does.

fn main() -> anyhow::Result<()> {
    lb_tests::workload::serve_probe()
}
