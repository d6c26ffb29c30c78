//! A directory on disk, changed the ways people and programs change files.

use std::fs;
use std::time::Instant;

use tempfile::TempDir;

use super::*;

/// A source that follows a directory, and the names it told us of.
struct Bench {
    directory: TempDir,
    events: mpsc::Receiver<Event>,
    stats: Arc<SourceStats>,
    task: tokio::task::JoinHandle<()>,
}

fn yaml(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    )
}

impl Bench {
    /// Starts with these files and passes over the first list, which it returns.
    async fn new(files: &[(&str, &str)]) -> (Self, Vec<String>) {
        let directory = tempfile::Builder::new().prefix("lbt-").tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let options = ManifestOptions {
            directory: directory.path().to_owned(),
            node: NodeFacts { name: "n1".into(), zone: None },
            selection: Selection::default(),
        };
        let manifests = Manifests::open(options).unwrap();
        let (sender, events) = mpsc::channel(1024);
        let stats = Arc::<SourceStats>::default();
        let task = tokio::spawn(manifests.run(sender, stats.clone()));
        let mut bench = Self { directory, events, stats, task };
        let mut first = Vec::new();
        for _ in 0..3 {
            first.push(bench.next().await);
        }
        (bench, first)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn next(&mut self) -> String {
        let event = tokio::time::timeout(Duration::from_secs(10), self.events.recv()).await;
        let event = event.expect("an event within 10 s").expect("a living source");
        assert!(event.received <= Instant::now());
        match event.change {
            Change::Node(facts) => format!("node {}", facts.name),
            Change::Services(StoreEvent::Reset(all)) => format!("services {}", all.len()),
            Change::Slices(StoreEvent::Reset(all)) => format!("slices {}", all.len()),
            Change::Services(StoreEvent::Apply(service)) => {
                format!("{} {}", service.name, service.cluster_ips[0])
            }
            Change::Services(StoreEvent::Delete(name)) => format!("{name} gone"),
            Change::Slices(StoreEvent::Apply(slice)) => {
                format!("slice {} {}", slice.name, slice.endpoints.len())
            }
            Change::Slices(StoreEvent::Delete(name)) => format!("slice {name} gone"),
        }
    }

    /// No event comes, although there was time for one.
    async fn silence(&mut self) {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let event = self.events.try_recv().ok().map(|event| event.change);
        assert!(event.is_none(), "{event:?}");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn what_is_there_comes_first() {
    let json = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "j"}, "spec": {"clusterIP": "10.96.0.3"}}"#;
    let (mut bench, first) = Bench::new(&[
        ("a.yaml", &format!("{}---\n{}", yaml("a", "10.96.0.1"), yaml("b", "10.96.0.2"))),
        ("j.json", json),
        ("readme.txt", &yaml("c", "10.96.0.4")),
        (".hidden.yaml", &yaml("d", "10.96.0.5")),
    ])
    .await;
    assert_eq!(first, ["node n1", "services 3", "slices 0"]);
    bench.silence().await;
}

#[tokio::test]
async fn files_come_change_and_go() {
    let (mut bench, first) = Bench::new(&[]).await;
    assert_eq!(first, ["node n1", "services 0", "slices 0"]);
    fs::write(bench.path("a.yaml"), yaml("a", "10.96.0.1")).unwrap();
    assert_eq!(bench.next().await, "default/a 10.96.0.1");
    fs::write(bench.path("a.yaml"), yaml("a", "10.96.0.2")).unwrap();
    assert_eq!(bench.next().await, "default/a 10.96.0.2");
    fs::write(bench.path("a.yaml"), yaml("a", "10.96.0.2")).unwrap();
    bench.silence().await;
    fs::rename(bench.path("a.yaml"), bench.path("a.yaml.bak")).unwrap();
    assert_eq!(bench.next().await, "default/a gone");
    fs::rename(bench.path("a.yaml.bak"), bench.path("b.yml")).unwrap();
    assert_eq!(bench.next().await, "default/a 10.96.0.2");
    fs::remove_file(bench.path("b.yml")).unwrap();
    assert_eq!(bench.next().await, "default/a gone");
}

#[tokio::test]
async fn an_editor_that_renames_over_the_file_is_one_change() {
    let (mut bench, _) = Bench::new(&[("a.yaml", &yaml("a", "10.96.0.1"))]).await;
    fs::write(bench.path(".a.yaml.swp"), yaml("a", "10.96.0.2")).unwrap();
    fs::rename(bench.path(".a.yaml.swp"), bench.path("a.yaml")).unwrap();
    assert_eq!(bench.next().await, "default/a 10.96.0.2");
    bench.silence().await;
}

#[tokio::test]
async fn a_file_is_read_when_its_writer_is_done() {
    use std::io::Write;
    let (mut bench, _) = Bench::new(&[("a.yaml", &yaml("a", "10.96.0.1"))]).await;
    let mut file = fs::File::create(bench.path("a.yaml")).unwrap();
    bench.silence().await;
    file.write_all(yaml("b", "10.96.0.2").as_bytes()).unwrap();
    file.flush().unwrap();
    bench.silence().await;
    file.write_all(format!("---\n{}", yaml("a", "10.96.0.3")).as_bytes()).unwrap();
    drop(file);
    assert_eq!(bench.next().await, "default/a 10.96.0.3");
    assert_eq!(bench.next().await, "default/b 10.96.0.2");
}

#[tokio::test]
async fn a_broken_file_keeps_its_last_good_content() {
    use std::sync::atomic::Ordering;
    let (mut bench, _) = Bench::new(&[("a.yaml", &yaml("a", "10.96.0.1"))]).await;
    for broken in ["metadata: {name: [\n", "kind: Service", "just text", "a: b\n  c: d\n"] {
        let before = bench.stats.failures.load(Ordering::Relaxed);
        fs::write(bench.path("a.yaml"), broken).unwrap();
        bench.silence().await;
        assert!(bench.stats.failures.load(Ordering::Relaxed) > before, "{broken:?} is counted");
    }
    fs::write(bench.path("a.yaml"), yaml("a", "10.96.0.2")).unwrap();
    assert_eq!(bench.next().await, "default/a 10.96.0.2");
}

#[test]
fn an_error_names_file_and_line() {
    let directory = tempfile::tempdir().unwrap();
    for (name, text, line) in [("x.yaml", "a: 1\nb: [\n", "x.yaml:"), ("x.json", "{\n\"a\": }", "x.json:2:")]
    {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        let error = text::file(&path).unwrap_err().to_string();
        assert!(error.contains(line), "{error}");
    }
}

#[tokio::test]
async fn an_object_in_two_files_stays_until_both_are_gone() {
    let (mut bench, first) =
        Bench::new(&[("1.yaml", &yaml("a", "10.96.0.1")), ("2.yaml", &yaml("a", "10.96.0.2"))]).await;
    assert_eq!(first[1], "services 1");
    fs::remove_file(bench.path("1.yaml")).unwrap();
    assert_eq!(bench.next().await, "default/a 10.96.0.2");
    fs::remove_file(bench.path("2.yaml")).unwrap();
    assert_eq!(bench.next().await, "default/a gone");
}

#[tokio::test]
async fn a_label_takes_a_service_away() {
    let (mut bench, _) = Bench::new(&[("a.yaml", &yaml("a", "10.96.0.1"))]).await;
    let labelled = yaml("a, labels: {service.kubernetes.io/service-proxy-name: x}", "10.96.0.1");
    fs::write(bench.path("a.yaml"), labelled).unwrap();
    assert_eq!(bench.next().await, "default/a gone");
}

#[tokio::test]
async fn a_mounted_config_map_changes_through_its_link() {
    use std::os::unix::fs::symlink;
    let (mut bench, _) = Bench::new(&[]).await;
    for (version, ip) in [("..v1", "10.96.0.1"), ("..v2", "10.96.0.2")] {
        fs::create_dir(bench.path(version)).unwrap();
        fs::write(bench.path(version).join("a.yaml"), yaml("a", ip)).unwrap();
    }
    symlink("..v1", bench.path("..data")).unwrap();
    symlink("..data/a.yaml", bench.path("a.yaml")).unwrap();
    assert_eq!(bench.next().await, "default/a 10.96.0.1");
    symlink("..v2", bench.path("..data_tmp")).unwrap();
    fs::rename(bench.path("..data_tmp"), bench.path("..data")).unwrap();
    assert_eq!(bench.next().await, "default/a 10.96.0.2");
}

#[tokio::test]
async fn a_directory_that_comes_back_is_followed_again() {
    let (mut bench, _) = Bench::new(&[("a.yaml", &yaml("a", "10.96.0.1"))]).await;
    let away = bench.directory.path().with_extension("away");
    fs::rename(bench.directory.path(), &away).unwrap();
    bench.silence().await;
    fs::create_dir(bench.directory.path()).unwrap();
    fs::write(bench.path("b.yaml"), yaml("b", "10.96.0.2")).unwrap();
    let events = [bench.next().await, bench.next().await];
    assert_eq!(events, ["default/a gone", "default/b 10.96.0.2"]);
    fs::write(bench.path("b.yaml"), yaml("b", "10.96.0.3")).unwrap();
    assert_eq!(bench.next().await, "default/b 10.96.0.3");
    fs::remove_dir_all(away).unwrap();
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    let options = ManifestOptions {
        directory: "/nonexistent/lbt".into(),
        node: NodeFacts::default(),
        selection: Selection::default(),
    };
    let error = Manifests::open(options).err().expect("an error").to_string();
    assert!(error.contains("/nonexistent/lbt"), "{error}");
}
