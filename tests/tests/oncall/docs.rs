//! The pages of `docs/`, held against what there is: commands are run, and what they name exists.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use lb_common::reason::Reason;
use lb_tests::{
    cluster::{Cluster, Forwarding},
    lab::{Family, Shape, agent_binary},
};

use crate::common::SECONDS;

/// Programs that commands for a cluster may call.
const OF_CLUSTERS: [&str; 6] = ["kubectl", "helm", "kind", "ctr", "docker", "skopeo"];
/// Commands of the agent that are not run on the way: the first serves, the second ends serving, and is run last.
const NOT_AT_ONCE: [&str; 2] = ["run", "cleanup"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every page, by its name.
fn pages() -> Vec<(String, String)> {
    let mut paths = vec![repository().join("README.md")];
    paths.extend(fs::read_dir(repository().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.sort();
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

/// Commands of a page's console blocks, without what is said about them; each with whether its block says that it needs a
/// cluster.
fn commands(page: &str) -> Vec<(bool, String)> {
    let (mut commands, mut inside, mut needs_cluster) = (Vec::new(), false, false);
    for line in page.lines().map(str::trim) {
        if line.starts_with("```") {
            inside = line == "```console";
            needs_cluster = false;
        } else if inside {
            needs_cluster |= line == "# needs a cluster";
            if let Some(command) = line.strip_prefix("$ ") {
                let command = command.split(" # ").next().unwrap().trim();
                commands.push((needs_cluster, command.to_owned()));
            }
        }
    }
    commands
}

/// What a command asks of the agent, if anything: itself, or through `kubectl exec`.
fn of_agent(command: &str) -> Option<String> {
    let own = ["lb-agent ", "target/release/lb-agent ", "target/debug/lb-agent "];
    let rest = own.iter().find_map(|start| command.strip_prefix(start));
    let executed = || command.contains(" exec ").then(|| command.split(" -- lb-agent ").nth(1)).flatten();
    rest.or_else(executed).map(|rest| format!("lb-agent {rest}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_pages_works_on_a_node_with_an_agent() {
    // The addresses that the pages name are those of such a cluster: kubeadm's ranges, DNS, a pod on the first node.
    let builder = Cluster::builder().nodes(1).family(Family::V4).shape(Shape::Bridged);
    let mut cluster = builder.forwarding(Forwarding::Stack).start().await.unwrap();
    cluster.settle("kube-system").await.unwrap();
    let node = cluster.node(0).clone();
    let directory = tempfile::tempdir().unwrap();
    let binaries = agent_binary().unwrap().parent().unwrap().to_owned();
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
    let root = cluster.bpf_root(&node).display().to_string();
    let run_dir = cluster.agent(0).run_dir().display().to_string();
    let env = [("PATH", path.as_str()), ("LB_AGENT_BPF_ROOT", &root), ("LB_AGENT_RUN_DIR", &run_dir)];
    let place = directory.path().display().to_string();
    let run = async |command: &str| {
        let script = format!("set -e; cd {place}; {command}");
        let output = node.exec(&["sh", "-c", &script], &env, SECONDS * 4).await.unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        // An archive on standard output goes to a file.
        assert!(output.status.success() && (!said.is_empty() || command.contains('>')), "{command}: {said}");
        said
    };
    let (mut ran, mut of_xtask) = (BTreeSet::new(), BTreeSet::new());
    for (name, page) in pages() {
        for (needs_cluster, command) in commands(&page) {
            let program = command.split(' ').next().unwrap();
            if let Some(asked) = of_agent(&command) {
                let verb = asked.split(' ').nth(1).unwrap().to_owned();
                if !NOT_AT_ONCE.contains(&verb.as_str()) {
                    run(&asked).await;
                }
                ran.insert(verb);
            } else if let Some(asked) = command.strip_prefix("cargo xtask ") {
                of_xtask.insert(asked.split(' ').next().unwrap().to_owned());
            } else if needs_cluster {
                assert!(OF_CLUSTERS.contains(&program), "{name}: {command}");
            } else if name == "troubleshooting.md" {
                run(&command).await;
            } else {
                let known = ["curl", "cargo"].contains(&program);
                assert!(known, "{name}: {command}: nobody runs it");
            }
        }
    }
    for verb in
        ["status", "explain", "support-bundle", "services", "backends", "connections", "drops", "check"]
    {
        assert!(ran.contains(verb), "no page shows `lb-agent {verb}`");
    }
    // Asked for its own help, a command that is a program of its own would be built first.
    let help = Command::new(binaries.join("xtask")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for verb in of_xtask {
        let known = help.lines().any(|line| line.trim_start().split(' ').next() == Some(verb.as_str()));
        assert!(known, "cargo xtask {verb}: {help}");
    }
    cluster.agent(0).sigterm().await.unwrap();
    let removed = run("lb-agent cleanup").await;
    assert!(removed.contains("removed the programs"), "{removed}");
}

#[test]
fn every_reason_is_explained_and_every_command_that_pages_name_exists() {
    let (_, page) = pages().into_iter().find(|(name, _)| name == "troubleshooting.md").unwrap();
    let rows = page.split("| reason |").nth(1).unwrap().split("\n## ").next().unwrap();
    let explained: BTreeSet<&str> =
        rows.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let all: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(explained, all);

    let help = Command::new(agent_binary().unwrap()).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let known: BTreeSet<&str> = help
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with([' ', '-']))
        .filter_map(|line| line.split(' ').next())
        .collect();
    for (name, page) in pages() {
        for named in page.split("`lb-agent ").skip(1) {
            let verb = named.split([' ', '`', '\n']).next().unwrap();
            // Places of flags and files come after it, too.
            if verb.starts_with(|first: char| first.is_ascii_lowercase()) {
                assert!(known.contains(verb), "{name} names `lb-agent {verb}`: {known:?}");
            }
        }
    }
}
