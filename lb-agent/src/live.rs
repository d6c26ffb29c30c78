//! Knobs: what can be changed while the agent runs, by `lb-agent set`, without a restart and without a packet noticing.
//!
//! [`Knobs`] holds the values. Who acts on one takes a receiver of it when it starts, and hears of every change; a change is
//! forgotten when the agent ends, because the next one starts with its flags.

mod log;
mod server;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use log::LogFilter;
pub(crate) use log::filter;
pub use server::{AskError, Server, ask};

use crate::dataplane::XdpMode;
use crate::options::MetricsDetail;

/// The default of `--run-dir`.
pub const DEFAULT_RUN_DIR: &str = "/run/lb-agent";

/// Where the agent of a run directory listens.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

/// What the knobs say when the agent starts.
#[derive(Clone, Debug)]
pub struct Initial {
    /// `--log`.
    pub log: LogFilter,
    /// `--xdp`.
    pub xdp: XdpMode,
    /// `--metrics-detail`.
    pub metrics_detail: MetricsDetail,
    /// `--metrics-max-series`.
    pub metrics_max_series: u32,
}

/// All knobs; clones are the same ones.
#[derive(Clone, Debug)]
pub struct Knobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    log: LogFilter,
    xdp: watch::Sender<XdpMode>,
    metrics_detail: watch::Sender<MetricsDetail>,
    metrics_max_series: watch::Sender<u32>,
    started: Vec<String>,
    /// One who sets at a time: several knobs of one command change together.
    setting: Mutex<()>,
}

/// What can be asked of a running agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Question {
    /// The knobs of these names, all of them where there is none.
    Get(Vec<String>),
    /// These knobs, to these values; all or none.
    Set(Vec<(String, String)>),
    /// Whether the agent keeps up: no change waits longer than `--health-timeout` for the kernel's tables.
    Live,
}

/// A knob, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knob {
    /// Its name, that of the flag.
    pub name: String,
    /// What it says now.
    pub value: String,
    /// What it said when the agent started.
    pub started: String,
    /// What it takes, in words.
    pub takes: String,
}

/// A change, checked.
enum Change {
    Log(Box<log::Parsed>),
    Xdp(XdpMode),
    MetricsDetail(MetricsDetail),
    MetricsMaxSeries(u32),
}

impl Knobs {
    /// As the flags say.
    pub fn new(initial: Initial) -> Self {
        let mut inner = Inner {
            log: initial.log,
            xdp: watch::Sender::new(initial.xdp),
            metrics_detail: watch::Sender::new(initial.metrics_detail),
            metrics_max_series: watch::Sender::new(initial.metrics_max_series),
            started: Vec::new(),
            setting: Mutex::new(()),
        };
        inner.started = inner.values().map(|(_, value, _)| value).into();
        Self(Arc::new(inner))
    }

    /// How the XDP path is attached, and every change of that.
    pub fn xdp(&self) -> watch::Receiver<XdpMode> {
        self.0.xdp.subscribe()
    }

    /// How much metrics tell of single Services.
    pub fn metrics_detail(&self) -> watch::Receiver<MetricsDetail> {
        self.0.metrics_detail.subscribe()
    }

    /// How many series metrics tell of single Services.
    pub fn metrics_max_series(&self) -> watch::Receiver<u32> {
        self.0.metrics_max_series.subscribe()
    }

    /// What all of them say.
    pub fn all(&self) -> Vec<Knob> {
        let told = |((name, value, takes), started): ((&str, String, String), &String)| Knob {
            name: name.to_owned(),
            value,
            started: started.clone(),
            takes,
        };
        self.0.values().into_iter().zip(&self.0.started).map(told).collect()
    }

    /// Answers a question.
    ///
    /// # Errors
    /// In words: there is no such knob, or it does not take the value. Nothing has changed then.
    pub fn answer(&self, question: &Question) -> Result<Vec<Knob>, String> {
        match question {
            Question::Get(names) => self.get(names),
            Question::Set(changes) => {
                self.set(changes)?;
                self.get(&changes.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>())
            }
            Question::Live => Ok(Vec::new()),
        }
    }

    fn get(&self, names: &[String]) -> Result<Vec<Knob>, String> {
        let all = self.all();
        if names.is_empty() {
            return Ok(all);
        }
        let find = |name: &String| {
            all.iter().find(|knob| knob.name == *name).cloned().ok_or_else(|| self.unknown(name))
        };
        names.iter().map(find).collect()
    }

    fn set(&self, changes: &[(String, String)]) -> Result<(), String> {
        let changes: Vec<Change> =
            changes.iter().map(|(name, value)| self.parse(name, value)).collect::<Result<_, _>>()?;
        let inner = &self.0;
        let _one = inner.setting.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            match change {
                Change::Log(parsed) => inner.log.set(*parsed)?,
                Change::Xdp(mode) => update(&inner.xdp, mode),
                Change::MetricsDetail(detail) => update(&inner.metrics_detail, detail),
                Change::MetricsMaxSeries(most) => update(&inner.metrics_max_series, most),
            }
        }
        Ok(())
    }

    fn parse(&self, name: &str, value: &str) -> Result<Change, String> {
        let wrong = |error: String| format!("{name}={value}: {error}");
        Ok(match name {
            "log" => Change::Log(Box::new(log::Parsed::new(value).map_err(wrong)?)),
            "xdp" => Change::Xdp(choice(value).map_err(wrong)?),
            "metrics-detail" => Change::MetricsDetail(choice(value).map_err(wrong)?),
            "metrics-max-series" => Change::MetricsMaxSeries(
                u32::from_str(value).map_err(|_| wrong("expected a number of series".to_owned()))?,
            ),
            _ => return Err(self.unknown(name)),
        })
    }

    fn unknown(&self, name: &str) -> String {
        let names = self.0.values().map(|(name, ..)| name).join(", ");
        format!(
            "there is no knob {name}: there are {names}; everything else takes a restart with another flag"
        )
    }
}

impl Inner {
    /// Name, value and what it takes, of each.
    fn values(&self) -> [(&'static str, String, String); 4] {
        [
            ("log", self.log.directives(), log::TAKES.to_owned()),
            ("xdp", word(*self.xdp.borrow()), words::<XdpMode>()),
            ("metrics-detail", word(*self.metrics_detail.borrow()), words::<MetricsDetail>()),
            ("metrics-max-series", self.metrics_max_series.borrow().to_string(), "a number".to_owned()),
        ]
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)?;
        if self.value == self.started { Ok(()) } else { write!(f, "  (started with {})", self.started) }
    }
}

/// Who listens hears of it only when it is something else.
fn update<T: PartialEq>(knob: &watch::Sender<T>, value: T) {
    knob.send_if_modified(|now| {
        let other = *now != value;
        *now = value;
        other
    });
}

fn choice<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| format!("expected {}", words::<T>()))
}

fn word<T: ValueEnum>(value: T) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn words<T: ValueEnum>() -> String {
    T::value_variants().iter().cloned().map(word).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knobs() -> Knobs {
        Knobs::new(Initial {
            log: LogFilter::fixed("info"),
            xdp: XdpMode::Off,
            metrics_detail: MetricsDetail::Services,
            metrics_max_series: 20_000,
        })
    }

    fn set(knobs: &Knobs, changes: &[(&str, &str)]) -> Result<Vec<Knob>, String> {
        let changes = changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        knobs.answer(&Question::Set(changes.collect()))
    }

    #[test]
    fn a_knob_says_what_it_was_set_to_and_who_listens_hears_of_it_once() {
        let knobs = knobs();
        let mut xdp = knobs.xdp();
        let told = set(&knobs, &[("xdp", "native"), ("metrics-max-series", "5")]).unwrap();
        assert_eq!(
            told.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["xdp=native  (started with off)", "metrics-max-series=5  (started with 20000)",]
        );
        assert!(xdp.has_changed().unwrap());
        assert_eq!(*xdp.borrow_and_update(), XdpMode::Native);
        set(&knobs, &[("xdp", "native")]).unwrap();
        assert!(!xdp.has_changed().unwrap());
        let back = set(&knobs, &[("xdp", "off")]).unwrap();
        assert_eq!(back[0].to_string(), "xdp=off");
        assert_eq!(*knobs.metrics_max_series().borrow(), 5);
    }

    #[test]
    fn all_or_none_of_a_command_is_done_and_what_is_wrong_is_said() {
        let knobs = knobs();
        for (name, value, word) in [
            ("xdp", "fast", "off, native, generic, auto"),
            ("xpd", "native", "there is no knob xpd"),
            ("log", "lb_agent=loud", "log=lb_agent=loud"),
            ("metrics-max-series", "-1", "number"),
            ("metrics-detail", "", "none, services, endpoints"),
        ] {
            let error = set(&knobs, &[("metrics-detail", "endpoints"), (name, value)]).unwrap_err();
            assert!(error.contains(word), "{error}");
            assert_eq!(*knobs.metrics_detail().borrow(), MetricsDetail::Services);
        }
    }

    #[test]
    fn knobs_are_told_by_name_or_all_of_them() {
        let knobs = knobs();
        let names = |question| -> Vec<String> {
            knobs.answer(&question).unwrap().into_iter().map(|knob| knob.name).collect()
        };
        assert_eq!(names(Question::Get(Vec::new())), ["log", "xdp", "metrics-detail", "metrics-max-series"]);
        assert_eq!(names(Question::Get(vec!["xdp".into()])), ["xdp"]);
        assert!(knobs.answer(&Question::Get(vec!["x".into()])).is_err());
    }
}
