//! `docs/install.md`, held against what there is.

use std::{collections::BTreeSet, process::Command};

use lb_tests::lab::agent_binary;
use serde_json::Value;

use crate::{
    kustomize::{self, kind},
    manifests::deploy,
};

/// Commands of the page that tests run: the first below, the second for the container.
const RUN: [&str; 2] = ["target/debug/lb-agent check", "cargo xtask image"];
/// Programs that the other commands call.
const PROGRAMS: [&str; 6] = ["kubectl", "kind", "helm", "skopeo", "ctr", "docker"];

fn page() -> String {
    std::fs::read_to_string(deploy("../docs/install.md")).unwrap()
}

/// The commands of the page, each with whether its block says that it needs a cluster.
fn commands() -> Vec<(bool, String)> {
    let (mut commands, mut lines) = (Vec::new(), page());
    lines.push('\n');
    let mut lines = lines.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if !line.starts_with("```") {
            continue;
        }
        assert_eq!(line, "```console");
        let needs_cluster = match lines.next() {
            Some("# run by tests") => false,
            Some("# needs a cluster") => true,
            other => panic!("a block begins with {other:?}, which does not say whether tests run it"),
        };
        for line in lines.by_ref().take_while(|line| *line != "```") {
            commands.push((needs_cluster, line.strip_prefix("$ ").expect(line).to_owned()));
        }
    }
    commands
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || "`()|,;'".contains(c))
        .map(|word| word.trim_end_matches(['.', ':']))
}

fn all_objects() -> Vec<Value> {
    ["overlays/replace-kube-proxy", "cleanup"]
        .iter()
        .flat_map(|directory| kustomize::build(&deploy(directory)).unwrap())
        .collect()
}

#[test]
fn commands_without_a_cluster_are_run_by_tests_and_the_others_are_known() {
    let commands = commands();
    assert!(commands.len() > 20, "{commands:?}");
    for (needs_cluster, command) in &commands {
        let program = command.split(' ').next().unwrap();
        let known = if *needs_cluster {
            PROGRAMS.contains(&program) || RUN.contains(&command.as_str())
        } else {
            RUN.contains(&command.as_str())
        };
        assert!(known, "{command}");
    }
    for run in RUN {
        assert!(
            commands.iter().any(|(cluster, command)| !cluster && command == run),
            "{run} is not on the page"
        );
    }
    let output = Command::new(agent_binary().unwrap()).arg("check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn files_variables_and_objects_that_the_page_names_exist() {
    let page = page();
    for word in words(&page).filter(|word| word.starts_with("deploy/")) {
        assert!(deploy("..").join(word).exists(), "{word}");
    }
    let archive = format!("target/image/lb-agent-{}.tar", env!("CARGO_PKG_VERSION"));
    for word in words(&page).filter(|word| word.contains("target/image/")) {
        assert!(word.ends_with(&archive), "{word}");
    }
    let help = Command::new(agent_binary().unwrap()).args(["run", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let objects = all_objects();
    let mut variables: BTreeSet<&str> = words(&page).filter(|word| word.starts_with("LB_AGENT_")).collect();
    for object in &objects {
        let data = object["data"].as_object().into_iter().flatten().map(|(name, _)| name.as_str());
        let env = object
            .pointer("/spec/template/spec/containers/0/env")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        variables.extend(data.chain(env.filter_map(|variable| variable["name"].as_str())));
    }
    for variable in variables {
        assert!(help.contains(&format!("[env: {variable}=")), "lb-agent run knows no {variable}");
    }
    let sets: Vec<String> = objects
        .iter()
        .filter(|it| kind(it) == "DaemonSet")
        .map(|it| it["metadata"]["name"].to_string())
        .collect();
    for word in
        words(&page).filter_map(|word| word.strip_prefix("daemonset/")).filter(|word| *word != "kube-proxy")
    {
        assert!(sets.contains(&format!("\"{word}\"")), "daemonset/{word}");
    }
}

#[test]
fn the_page_explains_exactly_the_capabilities_of_the_manifest() {
    let page = page();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `CAP_")?.split('`').next());
    let objects = kustomize::build(&deploy("base")).unwrap();
    let set = objects.iter().find(|object| kind(object) == "DaemonSet").unwrap();
    let added = set.pointer("/spec/template/spec/containers/0/securityContext/capabilities/add").unwrap();
    let added: Vec<&str> = added.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(rows.collect::<Vec<_>>(), added);
}
