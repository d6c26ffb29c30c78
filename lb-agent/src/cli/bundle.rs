//! `lb-agent support-bundle`.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::show::{self, Output};
use super::status::StatusOptions;
use crate::bundle::{self, Bundle, Collected};
use crate::options::ObjectOptions;

/// Flags of `lb-agent support-bundle`.
#[derive(Clone, Debug, Args)]
pub(super) struct BundleOptions {
    /// Where to write it, `-` for standard output [default: lb-agent-HOST-TIME.tar.gz in this directory]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Add this file, the agent's log for example (may be repeated; of a long one its last 16 MiB)
    #[arg(long, value_name = "FILE")]
    add: Vec<PathBuf>,
    /// List so many connections at most, those of the last packets
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    connections: usize,
    #[command(flatten)]
    object: ObjectOptions,
    #[command(flatten)]
    status: StatusOptions,
}

#[derive(Serialize)]
struct Told<'t> {
    file: &'t Path,
    #[serde(flatten)]
    collected: &'t Collected,
}

/// Collects, writes, and says what is in it.
pub(super) async fn bundle(options: &BundleOptions) -> anyhow::Result<()> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = format!("lb-agent-{}-{}", host.trim(), jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ"));
    let to = options.file.clone().unwrap_or_else(|| format!("{name}.tar.gz").into());
    let bundle = Bundle {
        look: options.status.look(),
        object: options.object.object.clone(),
        add: options.add.clone(),
        connections: options.connections,
    };
    if to == Path::new("-") {
        let collected = bundle::collect(&bundle).await;
        return bundle::write(&collected, &name, io::stdout().lock()).context("writing the bundle");
    }
    // Before the work is done, not after.
    let file = bundle::create(&to)?;
    let collected = bundle::collect(&bundle).await;
    bundle::write(&collected, &name, file).with_context(|| format!("writing {}", to.display()))?;
    match options.status.output() {
        Output::Json => show::json(&Told { file: &to, collected: &collected }),
        Output::Table => show::write(text(&to, &collected).as_bytes()),
    }
}

fn text(file: &Path, collected: &Collected) -> String {
    let mut text = String::new();
    for item in &collected.files {
        text.push_str(&format!("{:24} {:>9}  {}\n", item.name, item.bytes, item.what));
    }
    for missing in &collected.missing {
        text.push_str(&format!("{:24} {:>9}  {}\n", missing.name, "MISSING", missing.why));
    }
    text.push_str(&format!(
        "\n{} has it all, with addresses and names of Services, and without environments, kubeconfigs or tokens. Look \
         through\nit before you give it away, and add the agent's log (--add FILE, or `kubectl -n kube-system logs`).\n",
        file.display()
    ));
    text
}
