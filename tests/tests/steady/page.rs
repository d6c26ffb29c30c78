//! `docs/operations.md`, held against what there is: its commands are run, and the tests that it names exist.

use std::{collections::BTreeSet, fs, path::Path};

use lb_tests::{
    cluster::Forwarding,
    lab::{Family, agent_binary},
};

use crate::common::{SECONDS, Site, builder};

/// Programs that commands for a cluster may call.
const OF_CLUSTERS: [&str; 2] = ["kubectl", "helm"];

fn repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

fn page() -> String {
    fs::read_to_string(repository("docs/operations.md")).unwrap()
}

/// The commands of the page, in order; those that need a cluster apart.
fn commands(page: &str) -> (Vec<String>, Vec<String>) {
    let (mut run, mut cluster) = (Vec::new(), Vec::new());
    for block in page.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap();
        let (head, lines) = block.split_once('\n').unwrap();
        let into = match head {
            "# run by tests" => &mut run,
            "# needs a cluster" => &mut cluster,
            other => panic!("a block begins with {other:?}, which does not say whether tests run it"),
        };
        into.extend(lines.lines().map(|line| line.strip_prefix("$ ").expect(line).to_owned()));
    }
    (run, cluster)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_page_works_on_a_node_with_an_agent() {
    let mut site = Site::start(builder(1, Family::V4, Forwarding::Stack), 1).await;
    let node = site.cluster.node(0).clone();
    let binary = agent_binary().unwrap();
    let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let run_dir = site.cluster.agent(0).run_dir().display().to_string();
    let root = site.cluster.bpf_root(&node).display().to_string();
    let env = [("PATH", path.as_str()), ("LB_AGENT_RUN_DIR", &run_dir), ("LB_AGENT_BPF_ROOT", &root)];
    let (run, cluster) = commands(&page());
    assert!(run.len() > 6, "{run:?}");
    for command in run {
        let output = node.exec(&["sh", "-c", &format!("set -e; {command}")], &env, SECONDS).await.unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && !said.is_empty(), "{command}: {said}");
    }
    for command in cluster {
        let program = command.split(' ').next().unwrap();
        assert!(OF_CLUSTERS.contains(&program), "{command}");
    }
}

#[test]
fn the_tests_files_and_alerts_that_the_page_names_exist() {
    let page = page();
    let mut sources = String::new();
    for directory in ["steady", "sockets", "xdp"].map(|of| format!("tests/tests/{of}")) {
        for entry in fs::read_dir(repository(&directory)).unwrap() {
            sources += &fs::read_to_string(entry.unwrap().path()).unwrap();
        }
    }
    let mut rows = 0;
    for row in page.lines().filter(|line| line.starts_with("| ") && line.matches(" | ").count() == 3) {
        let tests = row.rsplit(" | ").next().unwrap().trim_end_matches(" |");
        if tests == "test" {
            continue;
        }
        rows += 1;
        for test in tests.split(", ").map(|test| test.trim_matches('`')) {
            assert!(sources.contains(&format!("async fn {test}(")), "{row}: there is no test {test}");
        }
    }
    assert!(rows > 10, "{rows}");
    let words = || page.split(|c: char| c.is_whitespace() || "`(),;:".contains(c));
    for word in words().filter(|word| word.starts_with("deploy/")) {
        assert!(repository(word.trim_end_matches('.')).exists(), "{word}");
    }
    let rules = fs::read_to_string(repository("deploy/monitoring/rules.yaml")).unwrap();
    let alerts: BTreeSet<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let named: BTreeSet<&str> = words().filter(|it| it.starts_with("Lb")).collect();
    assert_eq!(named, alerts);
}
