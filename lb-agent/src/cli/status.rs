//! `lb-agent status`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::FAILED;
use super::show::{self, Output};
use crate::dataplane::Pins;
use crate::net::DeviceSelection;
use crate::options::{BindAddress, DeviceOptions, HEALTHZ_PORT, METRICS_PORT, PinOptions};
use crate::status::{self, Look};

/// Flags of `lb-agent status`.
#[derive(Clone, Debug, Args)]
pub(super) struct StatusOptions {
    #[command(flatten)]
    pins: PinOptions,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Seconds for which traffic and drops are watched
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = window)]
    window: f64,
    /// Where the agent serves /healthz
    #[arg(long, env = "LB_AGENT_HEALTHZ_BIND_ADDRESS", value_name = "ADDRESS",
          default_value_t = BindAddress::EVERYWHERE)]
    healthz_bind_address: BindAddress<HEALTHZ_PORT>,
    /// Where the agent serves /metrics and /configz
    #[arg(long, env = "LB_AGENT_METRICS_BIND_ADDRESS", value_name = "ADDRESS",
          default_value_t = BindAddress::LOOPBACK)]
    metrics_bind_address: BindAddress<METRICS_PORT>,
    #[command(flatten)]
    devices: DeviceOptions,
}

fn window(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..=3600.0).contains(seconds));
    seconds.ok_or_else(|| format!("`{text}` is no number of seconds up to 3600"))
}

impl StatusOptions {
    /// How results are printed.
    pub(super) fn output(&self) -> Output {
        self.output
    }

    /// What the flags say.
    pub(super) fn look(&self) -> Look {
        Look {
            pins: Pins::new(&self.pins.bpf_root),
            window: Duration::from_secs_f64(self.window),
            healthz: self.healthz_bind_address,
            metrics: self.metrics_bind_address,
            selection: DeviceSelection {
                devices: self.devices.pod_devices.clone(),
                bridges: self.devices.pod_bridges.clone(),
                net: self.devices.net_devices.clone(),
            },
        }
    }
}

/// Looks and prints.
pub(super) async fn status(options: &StatusOptions) -> anyhow::Result<ExitCode> {
    let status = status::status(&options.look()).await?;
    match options.output {
        Output::Json => show::json(&status)?,
        Output::Table => show::write(status.to_string().as_bytes())?,
    }
    Ok(if status.well { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}
