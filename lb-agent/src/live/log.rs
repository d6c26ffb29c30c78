//! The knob `log`: what is logged.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Libraries that tell a lot at level debug, about themselves rather than about Services.
const QUIET: &str =
    "aya=info,aya_obj=info,netlink_proto=info,notify=info,hyper_util=info,tower=info,rustls=info";

/// What the knob takes.
pub(super) const TAKES: &str = "error, warn, info, debug or trace, also by module (info,lb_agent::net=debug)";

/// What puts a filter in place.
type Install = dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync;

/// The filter of the process's log, which can be replaced.
#[derive(Clone)]
pub struct LogFilter(Arc<Inner>);

struct Inner {
    directives: Mutex<String>,
    install: Box<Install>,
}

/// A filter, understood.
pub(super) struct Parsed {
    directives: String,
    filter: EnvFilter,
}

impl Parsed {
    /// Stricter than the filter's own grammar, which takes every word for the name of a module.
    pub(super) fn new(directives: &str) -> Result<Self, String> {
        let expected = || format!("expected {TAKES}");
        // No word at all counts as a level there, too.
        let is_level = |word: &str| !word.is_empty() && LevelFilter::from_str(word).is_ok();
        for directive in directives.split(',').map(str::trim) {
            let known = match directive.rsplit_once('=') {
                Some((_, level)) => is_level(level.trim()),
                None => is_level(directive),
            };
            if !known {
                return Err(expected());
            }
        }
        let filter = filter(directives).map_err(|_| expected())?;
        Ok(Self { directives: directives.to_owned(), filter })
    }
}

impl LogFilter {
    /// A filter that is in place; `install` replaces it.
    pub fn new(
        directives: &str,
        install: impl Fn(EnvFilter) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner { directives: Mutex::new(directives.to_owned()), install: Box::new(install) }))
    }

    /// A filter that decides about nothing: for a process whose log is somebody else's.
    pub fn fixed(directives: &str) -> Self {
        Self::new(directives, |_| Ok(()))
    }

    /// What is logged.
    pub fn directives(&self) -> String {
        self.lock().clone()
    }

    pub(super) fn set(&self, parsed: Parsed) -> Result<(), String> {
        let mut directives = self.lock();
        tell_libraries(&parsed.filter);
        (self.0.install)(parsed.filter)?;
        *directives = parsed.directives;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, String> {
        self.0.directives.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogFilter").field(&self.directives()).finish()
    }
}

/// The filter that directives describe.
///
/// # Errors
/// They make no sense.
pub(crate) fn filter(directives: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    EnvFilter::try_new(format!("{QUIET},{directives}"))
}

/// Records of the crate `log`, which the programs' own log comes as, are thrown away before any filter sees them when
/// their level is below one that stands for the process.
fn tell_libraries(filter: &EnvFilter) {
    let level = filter.max_level_hint().unwrap_or(LevelFilter::TRACE);
    log::set_max_level(match level {
        LevelFilter::OFF => log::LevelFilter::Off,
        LevelFilter::ERROR => log::LevelFilter::Error,
        LevelFilter::WARN => log::LevelFilter::Warn,
        LevelFilter::INFO => log::LevelFilter::Info,
        LevelFilter::DEBUG => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_levels_are_levels() {
        for good in ["info", "DEBUG", "off", "info,lb_agent::net=debug", "lb_agent=trace, warn"] {
            assert!(Parsed::new(good).is_ok(), "{good}");
        }
        for wrong in ["debgu", "", "info,", "lb_agent", "lb_agent=loud", "a=b=c"] {
            assert!(Parsed::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_installed_is_what_is_told() {
        let installed = Arc::new(Mutex::new(Vec::new()));
        let seen = installed.clone();
        let log = LogFilter::new("info", move |filter| {
            seen.lock().unwrap().push(filter.to_string());
            Ok(())
        });
        log.set(Parsed::new("lb_agent::net=debug").unwrap()).unwrap();
        assert_eq!(log.directives(), "lb_agent::net=debug");
        let installed = installed.lock().unwrap();
        assert!(
            installed[0].contains("lb_agent::net=debug") && installed[0].contains("aya=info"),
            "{installed:?}"
        );
        let refused = LogFilter::new("info", |_| Err("no".to_owned()));
        assert!(refused.set(Parsed::new("debug").unwrap()).is_err());
        assert_eq!(refused.directives(), "info");
    }
}
