//! kube-proxy's configuration file, changed while the agent runs: its log level is taken at once, the rest is told to wait for a
//! restart. (kube-proxy itself ends when its file changes.)

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::Configuration;
use crate::config::{self, Effective, Origin, ProxyFile};
use crate::live::{Knobs, Question};

/// How often it is looked: a ConfigMap takes a minute to reach a node anyway.
const LOOK: Duration = Duration::from_secs(2);
/// The flag of the log's level, by the names of argument and option.
const LOG: (&str, &str) = ("filter", "log");

/// Looks at the file that the agent was started with, for as long as it is polled.
pub(super) async fn follow_file(path: PathBuf, started: Configuration, knobs: Knobs) {
    let Some(mut known) = started.file else { return };
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut text = tokio::fs::read(&path).await.unwrap_or_default();
    loop {
        look.tick().await;
        // Missing for a moment while it is replaced.
        let Ok(now) = tokio::fs::read(&path).await else { continue };
        if now == text {
            continue;
        }
        text = now;
        match config::read(&path) {
            Ok(file) => {
                take(&known, &file, &started.effective, &knobs);
                known = file;
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                warn!(
                    error,
                    "the configuration file has changed and makes no sense: lb-agent would not start with it"
                );
            }
        }
    }
}

fn take(before: &ProxyFile, now: &ProxyFile, effective: &Effective, knobs: &Knobs) {
    let changed = changes(before, now);
    if let Some(level) = changed.get(LOG.0) {
        let entry = effective.0.iter().find(|entry| entry.flag == LOG.1);
        let overruled = entry.is_some_and(|entry| matches!(entry.from, Origin::Flag | Origin::Variable));
        let level = level.clone().unwrap_or_else(|| "info".to_owned());
        if overruled {
            info!(level, "log level of the configuration file not taken: a flag or variable says otherwise");
        } else if let Err(error) = knobs.answer(&Question::Set(vec![(LOG.1.to_owned(), level.clone())])) {
            warn!(error, "log level of the configuration file not taken");
        } else {
            info!(level, "log level taken from the changed configuration file");
        }
    }
    let waiting: BTreeSet<&str> = changed.keys().copied().filter(|flag| *flag != LOG.0).collect();
    if !waiting.is_empty() {
        let flags: Vec<String> = waiting.iter().map(|flag| format!("--{}", flag.replace('_', "-"))).collect();
        warn!(
            flags = flags.join(","),
            "the configuration file has changed: these take effect when lb-agent starts again"
        );
    }
}

/// Flags that the files say different things of, with what the new one says.
fn changes<'f>(before: &'f ProxyFile, now: &'f ProxyFile) -> BTreeMap<&'f str, Option<String>> {
    // The last one counts where several fields set a flag.
    let said = |file: &'f ProxyFile| -> BTreeMap<&'f str, String> {
        file.settings.iter().map(|setting| (setting.flag, setting.value.clone())).collect()
    };
    let (before, now) = (said(before), said(now));
    let flags: BTreeSet<&str> = before.keys().chain(now.keys()).copied().collect();
    flags
        .into_iter()
        .filter(|flag| before.get(flag) != now.get(flag))
        .map(|flag| (flag, now.get(flag).cloned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Setting;

    fn file(settings: &[(&'static str, &str)]) -> ProxyFile {
        let setting =
            |(flag, value): &(&'static str, &str)| Setting { flag, value: (*value).to_owned(), field: "x" };
        ProxyFile { settings: settings.iter().map(setting).collect(), ..ProxyFile::default() }
    }

    #[test]
    fn what_changed_is_what_another_start_would_do_otherwise() {
        let before = file(&[("filter", "info"), ("udp_timeout", "20"), ("node_ip", "::1")]);
        let now = file(&[
            ("udp_timeout", "30"),
            ("udp_timeout", "20"),
            ("filter", "debug"),
            ("max_connections", "9"),
        ]);
        let changed: Vec<_> = changes(&before, &now).into_iter().collect();
        assert_eq!(
            changed,
            [
                ("filter", Some("debug".to_owned())),
                ("max_connections", Some("9".to_owned())),
                ("node_ip", None),
            ]
        );
        assert!(changes(&before, &before).is_empty());
    }
}
