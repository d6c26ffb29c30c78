//! `get` and `set`: knobs of the running agent.

use std::path::PathBuf;

use clap::Args;

use super::show::{self, Output};
use crate::live::{self, Question};

/// Where the agent is asked.
#[derive(Clone, Debug, Args)]
struct RunDir {
    /// The run directory of the agent
    #[arg(long, env = "LB_AGENT_RUN_DIR", default_value = live::DEFAULT_RUN_DIR, value_name = "DIR")]
    run_dir: PathBuf,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct LiveOptions {
    /// The run directory of the agent
    #[arg(long, env = "LB_AGENT_RUN_DIR", default_value = live::DEFAULT_RUN_DIR, value_name = "DIR")]
    run_dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct GetOptions {
    /// Names of knobs; all of them, where none is named
    names: Vec<String>,
    #[command(flatten)]
    run_dir: RunDir,
}

#[derive(Debug, Args)]
pub(super) struct SetOptions {
    /// What is to change, all of it or nothing
    #[arg(required = true, value_name = "KNOB=VALUE", value_parser = change)]
    changes: Vec<(String, String)>,
    #[command(flatten)]
    run_dir: RunDir,
}

fn change(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected KNOB=VALUE, such as log=debug")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

pub(super) fn get(options: &GetOptions) -> anyhow::Result<()> {
    ask(&options.run_dir, &Question::Get(options.names.clone()))
}

pub(super) fn live(options: &LiveOptions) -> anyhow::Result<()> {
    live::ask(&options.run_dir, &Question::Live)?;
    println!("live");
    Ok(())
}

pub(super) fn set(options: &SetOptions) -> anyhow::Result<()> {
    ask(&options.run_dir, &Question::Set(options.changes.clone()))
}

fn ask(at: &RunDir, question: &Question) -> anyhow::Result<()> {
    let knobs = live::ask(&at.run_dir, question)?;
    match at.output {
        Output::Json => show::json(&knobs)?,
        Output::Table => knobs.iter().for_each(|knob| println!("{knob}")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_a_name_and_a_value_that_may_hold_equals_signs() {
        assert_eq!(
            change("log=info,lb_agent::net=debug"),
            Ok(("log".into(), "info,lb_agent::net=debug".into()))
        );
        assert!(change("log").is_err());
    }
}
