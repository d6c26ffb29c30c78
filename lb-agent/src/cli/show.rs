//! The commands that read pinned tables.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::apply::{TablesView, view};
use crate::dataplane::mapped::Access;
use crate::dataplane::{Connections, Counters, Maps, Pins};
use crate::observe::{
    BackendRow, ConnectionRow, DropRow, ServiceFilter, ServiceRow, TableText, backend_rows, connection_rows,
    drop_rows, service_rows,
};
use crate::options::PinOptions;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Aligned columns.
    #[default]
    Table,
    /// A JSON array, one object a row.
    Json,
}

/// Flags of the commands that read tables.
#[derive(Clone, Debug, Args)]
pub(super) struct ShowOptions {
    #[command(flatten)]
    pins: PinOptions,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Only this Service: name, or namespace/name (`drops` counts for all Services together)
    #[arg(short, long, value_name = "SERVICE")]
    service: Option<ServiceFilter>,
}

struct Opened {
    maps: Maps,
    view: TablesView,
}

fn open(options: &ShowOptions) -> anyhow::Result<Opened> {
    let maps = Maps::open(&Pins::new(&options.pins.bpf_root))?;
    let view = view(&maps.tables(Access::Read).context("mapping the tables")?);
    Ok(Opened { maps, view })
}

pub(super) fn services(options: &ShowOptions) -> anyhow::Result<()> {
    let Opened { maps, view } = open(options)?;
    let rows = service_rows(&view, &Counters::new(&maps)?, options.service.as_ref())?;
    print(options, &rows, ServiceRow::table)
}

pub(super) fn backends(options: &ShowOptions) -> anyhow::Result<()> {
    let Opened { maps, view } = open(options)?;
    let rows = backend_rows(&view, &Counters::new(&maps)?, options.service.as_ref())?;
    print(options, &rows, BackendRow::table)
}

pub(super) fn connections(options: &ShowOptions) -> anyhow::Result<()> {
    let Opened { maps, view } = open(options)?;
    let connections = Connections::new(&maps).list()?;
    print(options, &connection_rows(&view, &connections, options.service.as_ref()), ConnectionRow::table)
}

pub(super) fn drops(options: &ShowOptions) -> anyhow::Result<()> {
    let Opened { maps, .. } = open(options)?;
    let counts = Counters::new(&maps)?.reasons()?;
    // Programs want every reason, people those that occurred.
    print(options, &drop_rows(&counts, options.output == Output::Json), DropRow::table)
}

fn print<R: Serialize>(
    options: &ShowOptions,
    rows: &[R],
    table: fn(&[R]) -> TableText,
) -> anyhow::Result<()> {
    match options.output {
        Output::Json => json(rows),
        Output::Table => {
            let color = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            write(table(rows).render(color).as_bytes())
        }
    }
}

/// Prints JSON for programs: indented, with a line feed at its end.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(value).context("writing JSON")?;
    text.push(b'\n');
    write(&text)
}

/// Writes to standard output; a reader that closed it early (`| head`) has seen enough.
pub(super) fn write(text: &[u8]) -> anyhow::Result<()> {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("writing the result"),
        _ => Ok(()),
    }
}
