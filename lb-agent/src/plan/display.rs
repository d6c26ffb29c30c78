//! A plan as text, for people and for the expectation files of the tests. The form is stable.
//!
//! ```text
//! snackbar/order
//!   TCP v4 http
//!     internal clusterIP 10.96.1.5:80 -> balance 10.1.0.2:8080 10.1.1.4:8080
//!     external nodePort *:30080 -> drop
//!     endpoint 10.1.0.2:8080 local
//!     endpoint 10.1.1.4:8080
//!     endpoint 10.1.1.9:8080 not serving
//! ```

use std::fmt;
use std::net::SocketAddr;

use super::types::{
    ClassPlan, EndpointPlan, Frontend, FrontendKind, PlanChange, ServicePlan, ServicePortPlan, Verdict,
};
use crate::model::Family;

impl fmt::Display for ServicePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.service)?;
        if self.ports.is_empty() {
            writeln!(f, "  not proxied")?;
        }
        self.ports.iter().try_for_each(|port| write!(f, "{port}"))
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
        writeln!(f)?;
        self.class(f, "internal", &self.internal)?;
        if let Some(external) = &self.external {
            self.class(f, "external", external)?;
        }
        self.endpoints.iter().try_for_each(|endpoint| writeln!(f, "    endpoint {endpoint}"))
    }
}

impl ServicePortPlan {
    fn class(&self, f: &mut fmt::Formatter<'_>, name: &str, class: &ClassPlan) -> fmt::Result {
        write!(f, "    {name}")?;
        class.frontends.iter().try_for_each(|frontend| write!(f, " {frontend}"))?;
        match &class.verdict {
            Verdict::Balance(indices) => {
                write!(f, " -> balance")?;
                for endpoint in indices.iter().filter_map(|index| self.endpoints.get(*index as usize)) {
                    write!(f, " {}", endpoint.socket())?;
                }
                writeln!(f)
            }
            Verdict::Reject => writeln!(f, " -> reject"),
            Verdict::Drop => writeln!(f, " -> drop"),
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
        let kind = match self.kind {
            FrontendKind::ClusterIp => "clusterIP",
            FrontendKind::ExternalIp => "externalIP",
            FrontendKind::LoadBalancer => "loadBalancer",
            FrontendKind::NodePort => return write!(f, "nodePort *:{}", self.port),
        };
        write!(f, "{kind} {}", SocketAddr::new(self.address, self.port))
    }
}
