//! Flags about what the agent tells of itself, with kube-proxy's names where it has them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

/// Port of `/healthz` (kube-proxy's `ports.ProxyHealthzPort`).
pub const HEALTHZ_PORT: u16 = 10256;
/// Port of `/metrics` (kube-proxy's `ports.ProxyStatusPort`).
pub const METRICS_PORT: u16 = 10249;

/// Where a server listens; `PORT` where only an address is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindAddress<const PORT: u16>(pub Option<SocketAddr>);

impl<const PORT: u16> BindAddress<PORT> {
    /// Both families, all addresses.
    pub const EVERYWHERE: Self = Self(Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), PORT)));
    /// The loopback address of IPv4.
    pub const LOOPBACK: Self = Self(Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT)));
}

impl<const PORT: u16> FromStr for BindAddress<PORT> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() || text == "off" {
            return Ok(Self(None));
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        let with_port = || bare.parse::<IpAddr>().map(|address| SocketAddr::new(address, PORT));
        let address = text.parse().or_else(|_| with_port());
        address.map(|address| Self(Some(address))).map_err(|_| {
            format!("`{text}` is no address such as 127.0.0.1:{PORT}, 0.0.0.0 or [::]:{PORT}, and not `off`")
        })
    }
}

impl<const PORT: u16> fmt::Display for BindAddress<PORT> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("off"),
        }
    }
}

/// How much metrics tell of single Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum MetricsDetail {
    /// Nothing: the node as a whole, and drops by reason.
    None,
    /// Also series of their own for each Service port.
    #[default]
    Services,
    /// Also series for each endpoint of each Service port.
    Endpoints,
}

/// What the agent reads at its start and tells of itself.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Configuration file, health and metrics")]
pub struct ServeOptions {
    /// A configuration file of kube-proxy (KubeProxyConfiguration, kubeproxy.config.k8s.io/v1alpha1). Its fields become
    /// the defaults of flags here; those that mean nothing here are named in a warning, unknown ones are an error.
    /// docs/configuration.md has them all
    #[arg(long, env = "LB_AGENT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Where /healthz and /livez are served: IP, IP:PORT, or `off`. `[::]` is both families
    #[arg(long, env = "LB_AGENT_HEALTHZ_BIND_ADDRESS", value_name = "ADDRESS",
          default_value_t = BindAddress::EVERYWHERE)]
    pub healthz_bind_address: BindAddress<HEALTHZ_PORT>,

    /// Where /metrics, /configz, /proxyMode and /healthz are served: IP, IP:PORT, or `off`. What is told there is for
    /// operators
    #[arg(long, env = "LB_AGENT_METRICS_BIND_ADDRESS", value_name = "ADDRESS",
          default_value_t = BindAddress::LOOPBACK)]
    pub metrics_bind_address: BindAddress<METRICS_PORT>,

    /// End when one of these addresses cannot be had, instead of trying again
    #[arg(long, env = "LB_AGENT_BIND_ADDRESS_HARD_FAIL")]
    pub bind_address_hard_fail: bool,

    /// Seconds that a change may wait for the kernel's tables until the proxy says that it is not healthy
    #[arg(long, env = "LB_AGENT_HEALTH_TIMEOUT", value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub health_timeout: u32,

    /// How much metrics tell of single Services
    #[arg(long, env = "LB_AGENT_METRICS_DETAIL", value_enum, default_value_t)]
    pub metrics_detail: MetricsDetail,

    /// The most series that metrics tell of single Services and endpoints; those of the Services that came last are left
    /// out and counted
    #[arg(long, env = "LB_AGENT_METRICS_MAX_SERIES", value_name = "N", default_value_t = 20_000)]
    pub metrics_max_series: u32,

    /// How willingly the kernel ends lb-agent when memory is short, from -1000 (never) to 1000 [default: as it was
    /// started]. Services go on without it
    #[arg(long, env = "LB_AGENT_OOM_SCORE_ADJ", value_name = "N", allow_hyphen_values = true,
          value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    pub oom_score_adj: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_addresses_need_no_port_and_may_be_off() {
        let parsed =
            |text: &str| text.parse::<BindAddress<HEALTHZ_PORT>>().map(|address| address.to_string());
        for (text, expected) in [
            ("0.0.0.0", "0.0.0.0:10256"),
            ("127.0.0.1:9", "127.0.0.1:9"),
            ("::", "[::]:10256"),
            ("[::1]", "[::1]:10256"),
            ("[::]:7", "[::]:7"),
            ("", "off"),
            ("off", "off"),
        ] {
            assert_eq!(parsed(text).as_deref(), Ok(expected), "{text}");
        }
        for wrong in ["localhost", "10.0.0.1:x", ":10256", "[1.2.3]"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
        assert_eq!(BindAddress::<HEALTHZ_PORT>::EVERYWHERE.to_string(), "[::]:10256");
        assert_eq!(BindAddress::<METRICS_PORT>::LOOPBACK.to_string(), "127.0.0.1:10249");
    }
}
