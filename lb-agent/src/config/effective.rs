//! What is in effect: every flag with its value, and where the value comes from.

use clap::ArgMatches;
use clap::parser::ValueSource;
use serde::Serialize;

use super::settings::ProxyFile;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// The command line.
    Flag,
    /// The flag's environment variable.
    Variable,
    /// A field of the configuration file.
    File(&'static str),
    /// Nobody said anything else.
    Default,
}

/// A flag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its name, without hyphens before it.
    #[serde(skip)]
    pub flag: String,
    /// Its value, several joined by commas; `None` where the agent finds one out by itself.
    pub value: Option<String>,
    /// Where that comes from.
    pub from: Origin,
}

/// All flags of `lb-agent run`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective(pub Vec<Entry>);

impl Effective {
    /// What a command's arguments came to. `file` is what the configuration file set.
    pub fn new(command: &clap::Command, matches: &ArgMatches, file: Option<&ProxyFile>) -> Self {
        let arguments = command
            .get_arguments()
            .filter(|argument| !["help", "version"].contains(&argument.get_id().as_str()));
        let entry = |argument: &clap::Arg| {
            let id = argument.get_id().as_str();
            let raw = matches
                .get_raw(id)
                .map(|values| values.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(","));
            let in_file =
                || file.and_then(|file| file.settings.iter().rev().find(|setting| setting.flag == id));
            let from = match matches.value_source(id) {
                Some(ValueSource::CommandLine) => Origin::Flag,
                Some(ValueSource::EnvVariable) => Origin::Variable,
                _ => in_file().map_or(Origin::Default, |setting| Origin::File(setting.field)),
            };
            let flag = argument.get_long().unwrap_or(id).to_owned();
            Entry { flag, value: raw, from }
        };
        Self(arguments.map(entry).collect())
    }

    /// The flags that somebody set, and those that nobody did, as `name=value` with spaces between them.
    pub fn texts(&self) -> (String, String) {
        let text = |wanted: bool| {
            let of_kind = self.0.iter().filter(|entry| (entry.from != Origin::Default) == wanted);
            let one = |entry: &Entry| Some(format!("{}={}", entry.flag, entry.value.as_ref()?));
            of_kind.filter_map(one).collect::<Vec<_>>().join(" ")
        };
        (text(true), text(false))
    }
}

impl Serialize for Effective {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|entry| (&entry.flag, entry)))
    }
}
