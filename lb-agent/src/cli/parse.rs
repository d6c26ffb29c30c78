//! From the command line, the environment and kube-proxy's configuration file to what is to be done.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ContextKind;
use clap::{Command, CommandFactory, FromArgMatches};

use super::Cli;
use crate::app::{Configuration, bad_configuration};
use crate::config::{self, Effective, ProxyFile};

/// A command line, understood.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) cli: Cli,
    /// For `run`: what is in effect.
    pub(super) configuration: Configuration,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Help was asked for, or the command line makes no sense.
    Usage(clap::Error),
    /// The configuration file makes no sense.
    File(anyhow::Error),
}

impl From<clap::Error> for Trouble {
    fn from(error: clap::Error) -> Self {
        Self::Usage(error)
    }
}

/// Understands a command line, its program's name first.
pub(super) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Parsed, Trouble> {
    let args: Vec<OsString> = args.into_iter().collect();
    let mut command = Cli::command();
    let mut matches = command.try_get_matches_from_mut(&args)?;
    let file = match matches.subcommand() {
        Some(("run", run)) => run.get_one::<PathBuf>("config").cloned(),
        _ => None,
    };
    let mut said = None;
    if let Some(path) = &file {
        let file = config::read(path).map_err(|error| Trouble::File(bad_configuration(error.into())))?;
        command = with_defaults(Cli::command(), &file);
        matches = command.try_get_matches_from_mut(&args).map_err(|error| {
            let text = format!("configuration file {}: {}", path.display(), in_words(&error, &file));
            Trouble::File(bad_configuration(anyhow::anyhow!(text)))
        })?;
        said = Some(file);
    }
    let effective = match (matches.subcommand(), command.find_subcommand("run")) {
        (Some(("run", matches)), Some(run)) => Effective::new(run, matches, said.as_ref()),
        _ => Effective::default(),
    };
    let configuration = Configuration { effective, file: said };
    Ok(Parsed { cli: Cli::from_arg_matches(&matches)?, configuration })
}

/// The same command line with other defaults. Flags of all commands stand at the top, the others at `run`.
fn with_defaults(command: Command, file: &ProxyFile) -> Command {
    let global = |id: &str| command.get_arguments().any(|argument| argument.get_id() == id);
    let (at_top, at_run): (Vec<_>, Vec<_>) = file.settings.iter().partition(|setting| global(setting.flag));
    let set = |command: Command, settings: &[&config::Setting]| {
        settings.iter().fold(command, |command, setting| {
            // Read once in the life of the process: `default_value` wants texts that stay.
            let value: &'static str = Box::leak(setting.value.clone().into_boxed_str());
            command.mut_arg(setting.flag, |argument| argument.default_value(value))
        })
    };
    set(command, &at_top).mut_subcommand("run", |run| set(run, &at_run))
}

/// A value that its flag does not take, with the field that it came from.
fn in_words(error: &clap::Error, file: &ProxyFile) -> String {
    let flag = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
    let of_flag = |setting: &&config::Setting| {
        flag.split([' ', '=']).next() == Some(&format!("--{}", setting.flag.replace('_', "-")))
    };
    let text = error.to_string();
    let reason = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    match file.settings.iter().find(of_flag) {
        Some(setting) => format!("{}: {reason}", setting.field),
        None => reason,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Command as Verb;
    use super::*;
    use crate::config::Origin;

    fn parsed(file: &str, args: &[&str]) -> Result<Parsed, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        std::fs::write(&path, format!("{head}{file}\n")).unwrap();
        let config = format!("--config={}", path.display());
        let args = ["lb-agent", "run", &config].into_iter().chain(args.iter().copied()).map(OsString::from);
        parse(args).map_err(|trouble| match trouble {
            Trouble::Usage(error) => format!("usage: {error}"),
            Trouble::File(error) => format!("{error:#}"),
        })
    }

    fn origin(parsed: &Parsed, flag: &str) -> (Option<String>, Origin) {
        let entry = parsed.configuration.effective.0.iter().find(|entry| entry.flag == flag).expect(flag);
        (entry.value.clone(), entry.from.clone())
    }

    #[test]
    fn s_63_the_file_sets_defaults_and_flags_win() {
        let file = "hostnameOverride: of-the-file\nbindAddressHardFail: true\noomScoreAdj: -7\n\
                    nodePortAddresses: [192.0.2.0/24, 198.51.100.0/24]\nlogging: {verbosity: 4, format: json}\n\
                    conntrack: {udpTimeout: 40s, udpStreamTimeout: 50s}\nhealthzBindAddress: 127.0.0.1";
        let parsed = parsed(file, &["--udp-stream-timeout=77", "--forwarding=redirect"]).unwrap();
        let Verb::Run(options) = &parsed.cli.command else { panic!("another command") };
        assert_eq!(options.source.node_name.as_deref(), Some("of-the-file"));
        assert!(options.serve.bind_address_hard_fail);
        assert_eq!(options.serve.oom_score_adj, Some(-7));
        assert_eq!(options.node.node_port_addresses.len(), 2);
        assert_eq!((options.timeouts.udp_timeout, options.timeouts.udp_stream_timeout), (40, 77));
        assert_eq!(options.serve.healthz_bind_address.to_string(), "127.0.0.1:10256");
        assert_eq!(parsed.cli.log.filter, "debug");
        assert_eq!(parsed.cli.log.log_format, crate::options::LogFormat::Json);
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(origin(&parsed, "udp-timeout"), (text("40"), Origin::File("conntrack.udpTimeout")));
        assert_eq!(origin(&parsed, "udp-stream-timeout"), (text("77"), Origin::Flag));
        assert_eq!(origin(&parsed, "log"), (text("debug"), Origin::File("logging.verbosity")));
        assert_eq!(origin(&parsed, "attach"), (text("auto"), Origin::Default));
        assert_eq!(origin(&parsed, "zone"), (None, Origin::Default));
        let (set, defaults) = parsed.configuration.effective.texts();
        assert!(set.contains("node-port-addresses=192.0.2.0/24,198.51.100.0/24"), "{set}");
        assert!(set.contains("forwarding=redirect") && defaults.contains("max-services=16384"), "{defaults}");
    }

    #[test]
    fn s_63_values_that_a_flag_refuses_are_told_with_their_field() {
        let error = |file: &str| parsed(file, &[]).expect_err("an error");
        let text = error("nodePortAddresses: [everywhere]");
        assert!(text.contains("config.yaml: nodePortAddresses: invalid value 'everywhere'"), "{text}");
        let text = error("healthzBindAddress: nowhere");
        assert!(text.contains("healthzBindAddress") && text.contains("'nowhere'"), "{text}");
        let text = error("oomScoreAdj: 1001");
        assert!(text.contains("oomScoreAdj"), "{text}");
        let text = error("modes: x");
        assert!(text.contains("modes is no field"), "{text}");
    }

    #[test]
    fn s_63_the_arguments_that_kubeadm_gives_kube_proxy_are_understood() {
        let file = "hostnameOverride: of-the-file\nnodePortAddresses: [primary]";
        let arguments = ["--hostname-override=of-the-flag", "--nodeport-addresses=192.0.2.0/24"];
        let parsed = parsed(file, &arguments).unwrap();
        let Verb::Run(options) = &parsed.cli.command else { panic!("another command") };
        assert_eq!(options.source.node_name.as_deref(), Some("of-the-flag"));
        assert_eq!(options.node.node_port_addresses[0].to_string(), "192.0.2.0/24");
        assert_eq!(origin(&parsed, "node-name").1, Origin::Flag);
    }

    #[test]
    fn without_a_file_everything_is_as_the_command_line_says() {
        let parsed = parse(["lb-agent", "run"].map(OsString::from)).expect("a command line");
        assert!(parsed.configuration.file.is_none());
        assert!(parsed.configuration.effective.0.len() > 30);
        let parsed = parse(["lb-agent", "version"].map(OsString::from)).expect("a command line");
        assert!(parsed.configuration.effective.0.is_empty());
    }
}
