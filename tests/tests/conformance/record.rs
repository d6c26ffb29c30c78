//! What `cargo xtask conformance` reads: one JSON object a finished trial, in the file that `LB_CONFORMANCE_RECORD` names.

use std::{
    fs::File,
    io::Write,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Serialize;

/// The variable with the file's name.
const RECORD: &str = "LB_CONFORMANCE_RECORD";

/// Which trial it is.
#[derive(Serialize)]
pub(crate) struct Subject {
    /// The upstream file.
    pub(crate) file: String,
    /// The suite.
    pub(crate) suite: String,
    /// The title.
    pub(crate) title: String,
    /// Variant and family.
    pub(crate) place: String,
}

/// Times until changes were visible, by what was waited for.
pub(crate) type Notes = Arc<Mutex<Vec<(String, Duration)>>>;

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(flatten)]
    subject: &'a Subject,
    passed: bool,
    seconds: f64,
    /// The longest time until a change was visible, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    visible_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// Appends a trial to the record, if one is kept.
pub(crate) fn write(subject: &Subject, notes: &Notes, took: Duration, error: Option<&str>) {
    static WRITING: Mutex<()> = Mutex::new(());
    let Some(path) = std::env::var_os(RECORD) else { return };
    let longest = notes.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(_, time)| *time).max();
    let entry = Entry {
        subject,
        passed: error.is_none(),
        seconds: took.as_secs_f64(),
        visible_ms: longest.map(|time| time.as_secs_f64() * 1000.0),
        error,
    };
    let one_at_a_time = WRITING.lock();
    let written = serde_json::to_string(&entry).map_err(std::io::Error::other).and_then(|line| {
        let mut file = File::options().create(true).append(true).open(&path)?;
        file.write_all(format!("{line}\n").as_bytes())
    });
    drop(one_at_a_time);
    if let Err(error) = written {
        eprintln!("writing {}: {error}", path.display());
    }
}
