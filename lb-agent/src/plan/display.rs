//! A plan as text, for people and for the expectation files of the tests. The form is stable.
//!
//! ```text
//! snackbar/order
//!   TCP v4 http
//!     internal clusterIP 10.96.1.5:80 -> balance 10.1.0.2:8080 10.1.1.4:8080
//!     external nodePort *:30080 loadBalancer 203.0.113.5:80 -> drop, source kept
//!     inside -> balance 10.1.0.2:8080 10.1.1.4:8080
//!     sources 192.0.2.0/24
//!     endpoint 10.1.0.2:8080 local
//!     endpoint 10.1.1.4:8080
//!     endpoint 10.1.1.9:8080 not serving
//!   health check 32000: 1 v4, 0 v6
//! ```
//!
//! `inside` stands there when pods and processes of the node meet something else than clients outside.

use std::fmt;
use std::net::SocketAddr;

use super::types::{
    Algorithm, EndpointPlan, Frontend, FrontendKind, PlanChange, ServicePlan, ServicePortPlan, Verdict,
    kind_name,
};
use crate::model::Family;

impl fmt::Display for ServicePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.service)?;
        if self.ports.is_empty() {
            writeln!(f, "  not proxied")?;
        }
        self.ports.iter().try_for_each(|port| write!(f, "{port}"))?;
        if let Some(check) = &self.health_check {
            writeln!(f, "  health check {}: {} v4, {} v6", check.node_port, check.local_v4, check.local_v6)?;
        }
        Ok(())
    }
}

impl fmt::Display for PlanChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.plan {
            Some(plan) => write!(f, "{plan}"),
            None => writeln!(f, "{}\n  gone", self.service),
        }
    }
}

impl fmt::Display for ServicePortPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.key.family {
            Family::V4 => "v4",
            Family::V6 => "v6",
        };
        write!(f, "  {} {family}", self.key.protocol)?;
        if !self.key.port_name.is_empty() {
            write!(f, " {}", self.key.port_name)?;
        }
        if let Some(timeout) = self.affinity_timeout {
            write!(f, " affinity {timeout}s")?;
        }
        if self.algorithm != Algorithm::Random {
            write!(f, " {}", self.algorithm.name())?;
        }
        writeln!(f)?;
        self.line(f, "internal", &self.internal.frontends, &self.internal.verdict)?;
        writeln!(f)?;
        if let Some(external) = &self.external {
            self.line(f, "external", &external.frontends, &external.verdict)?;
            writeln!(f, "{}", if external.preserve_source { ", source kept" } else { "" })?;
            if external.inside != external.verdict {
                self.line(f, "inside", &[], &external.inside)?;
                writeln!(f)?;
            }
            if !external.source_ranges.is_empty() {
                write!(f, "    sources")?;
                external.source_ranges.iter().try_for_each(|range| write!(f, " {range}"))?;
                writeln!(f)?;
            }
        }
        self.endpoints.iter().try_for_each(|endpoint| writeln!(f, "    endpoint {endpoint}"))
    }
}

impl ServicePortPlan {
    fn line(
        &self,
        f: &mut fmt::Formatter<'_>,
        name: &str,
        frontends: &[Frontend],
        verdict: &Verdict,
    ) -> fmt::Result {
        write!(f, "    {name}")?;
        frontends.iter().try_for_each(|frontend| write!(f, " {frontend}"))?;
        match verdict {
            Verdict::Balance(indices) => {
                write!(f, " -> balance")?;
                let chosen = indices.iter().filter_map(|index| self.endpoints.get(*index as usize));
                chosen.into_iter().try_for_each(|endpoint| write!(f, " {}", endpoint.socket()))
            }
            Verdict::Reject => write!(f, " -> reject"),
            Verdict::Drop => write!(f, " -> drop"),
        }
    }
}

impl EndpointPlan {
    fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

impl fmt::Display for EndpointPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.socket())?;
        if self.local {
            write!(f, " local")?;
        }
        if !self.serving {
            write!(f, " not serving")?;
        }
        Ok(())
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = kind_name(self.kind);
        if self.kind == FrontendKind::NodePort {
            return write!(f, "{kind} *:{}", self.port);
        }
        write!(f, "{kind} {}", SocketAddr::new(self.address, self.port))
    }
}
