//! `lb-agent explain`.

use clap::Args;

use super::show::{self, Output};
use crate::dataplane::Pins;
use crate::explain::{self, From, Question, To};
use crate::options::{ObjectOptions, PinOptions};

/// Flags of `lb-agent explain`.
#[derive(Clone, Debug, Args)]
pub(super) struct ExplainOptions {
    /// Who connects: the address of a pod, of this node or of a host outside, with its port when an existing connection is
    /// meant (10.1.0.7, 10.1.0.7:40000, [fd00::7]:40000)
    #[arg(long, value_name = "IP[:PORT]")]
    from: From,
    /// To what: 10.96.0.1:443, 10.96.0.10:53/udp, [fd00:96::1]:443/tcp; or 10.96.0.1/icmp for a ping
    #[arg(long, value_name = "IP:PORT[/PROTOCOL]")]
    to: To,
    #[command(flatten)]
    pins: PinOptions,
    #[command(flatten)]
    object: ObjectOptions,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Explains and prints.
pub(super) async fn explain(options: &ExplainOptions) -> anyhow::Result<()> {
    let question = Question::new(options.from, options.to).map_err(anyhow::Error::msg)?;
    let pins = Pins::new(&options.pins.bpf_root);
    let told = explain::explain(&question, &pins, options.object.object.as_deref()).await?;
    match options.output {
        Output::Json => show::json(&told),
        Output::Table => show::write(told.to_string().as_bytes()),
    }
}
