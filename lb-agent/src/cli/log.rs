//! Setting up the log: standard error, text or JSON.

use std::io::{self, IsTerminal};

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Handle;

use crate::live::{self, LogFilter};
use crate::options::{LogFormat, LogOptions};

/// Sends the log where it belongs from now on. What is logged can be changed.
pub(super) fn init(options: &LogOptions) -> anyhow::Result<LogFilter> {
    let filter = live::filter(&options.filter).with_context(|| {
        format!("--log {}: expected something like info or info,lb_agent=debug", options.filter)
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let (handle, result) = match options.log_format {
        LogFormat::Text => {
            let color = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let builder = builder.with_ansi(color).with_target(false).with_filter_reloading();
            (knob(&options.filter, builder.reload_handle()), builder.try_init())
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            (knob(&options.filter, builder.reload_handle()), builder.try_init())
        }
    };
    result.map_err(|error| anyhow::anyhow!("{error}")).context("setting up the log")?;
    Ok(handle)
}

fn knob<S: 'static>(directives: &str, handle: Handle<EnvFilter, S>) -> LogFilter {
    LogFilter::new(directives, move |filter| handle.reload(filter).map_err(|error| error.to_string()))
}
