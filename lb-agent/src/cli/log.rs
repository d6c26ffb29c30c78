//! Setting up the log: standard error, text or JSON.

use std::io::{self, IsTerminal};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::options::{LogFormat, LogOptions};

/// Libraries that tell a lot at level debug, about themselves rather than about Services.
const QUIET: &str =
    "aya=info,aya_obj=info,netlink_proto=info,notify=info,hyper_util=info,tower=info,rustls=info";

/// Sends the log where it belongs from now on.
pub(super) fn init(options: &LogOptions) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", options.filter)).with_context(|| {
        format!("--log {}: expected something like info or info,lb_agent=debug", options.filter)
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let result = match options.log_format {
        LogFormat::Text => {
            let color = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(color).with_target(false).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    result.map_err(|error| anyhow::anyhow!("{error}")).context("setting up the log")
}
