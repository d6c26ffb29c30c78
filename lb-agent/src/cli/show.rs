//! The commands that read pinned tables.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::apply::{TablesView, view};
use crate::dataplane::mapped::{Access, MappedMemory};
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

/// The pinned tables of an agent, alive or dead.
pub(super) struct Opened {
    pub(super) maps: Maps,
    memory: MappedMemory,
}

impl Opened {
    /// Opens those below a bpf root.
    pub(super) fn of(pins: &PinOptions) -> anyhow::Result<Self> {
        let maps = Maps::open(&Pins::new(&pins.bpf_root))?;
        let memory = maps.tables(Access::Read).context("mapping the tables")?;
        Ok(Self { maps, memory })
    }

    /// What the tables say now.
    pub(super) fn view(&self) -> TablesView {
        view(&self.memory)
    }
}

pub(super) fn services(options: &ShowOptions) -> anyhow::Result<()> {
    let opened = Opened::of(&options.pins)?;
    let counters = Counters::new(&opened.maps)?;
    let rows = service_rows(&opened.view(), &counters, options.service.as_ref())?;
    print(options, &rows, ServiceRow::table)
}

pub(super) fn backends(options: &ShowOptions) -> anyhow::Result<()> {
    let opened = Opened::of(&options.pins)?;
    let counters = Counters::new(&opened.maps)?;
    let rows = backend_rows(&opened.view(), &counters, options.service.as_ref())?;
    print(options, &rows, BackendRow::table)
}

pub(super) fn connections(options: &ShowOptions) -> anyhow::Result<()> {
    let opened = Opened::of(&options.pins)?;
    let connections = Connections::new(&opened.maps).list()?;
    let rows = connection_rows(&opened.view(), &connections, options.service.as_ref());
    print(options, &rows, ConnectionRow::table)
}

pub(super) fn drops(options: &ShowOptions) -> anyhow::Result<()> {
    let opened = Opened::of(&options.pins)?;
    let counts = Counters::new(&opened.maps)?.reasons()?;
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
    write_more(text).map(drop)
}

/// Writes to standard output; false when nobody reads it any more.
pub(super) fn write_more(text: &[u8]) -> anyhow::Result<bool> {
    match io::stdout().write_all(text) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("writing the result"),
    }
}
