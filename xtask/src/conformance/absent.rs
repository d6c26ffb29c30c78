//! Titles of `test/e2e/network/` that the suite does not run, and why.

/// Titles left out for one reason.
pub(super) struct Absent {
    /// Why.
    pub(super) why: &'static str,
    /// File and title.
    pub(super) titles: &'static [(&'static str, &'static str)],
}

/// All of them.
pub(super) const ABSENT: &[Absent] = &[
    Absent {
        why: "Later: no program runs when an SCTP socket of the node connects",
        titles: &[
            ("networking.go", "should function for node-Service: sctp"),
            ("dual_stack.go", "should function for node-Service: sctp"),
        ],
    },
    Absent {
        why: "Not a proxy's: of the iptables mode, of host ports, of cloud controllers, of the API server alone",
        titles: &[
            (
                "kube_proxy.go",
                "should update metric for tracking accepted packets destined for localhost nodeports",
            ),
            (
                "hostport.go",
                "validates that there is no conflict between pods with same hostPort but different hostIP and protocol \
                 [LinuxOnly]",
            ),
            ("networking.go", "should allow creating a Pod with an SCTP HostPort"),
            ("loadbalancer.go", "should handle load balancer cleanup finalizer for service"),
        ],
    },
];
