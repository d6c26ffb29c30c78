//! The image as a container: what a kubelet and a container runtime make of image and manifests, made here with `runc`,
//! and the agent in it at work with no capability but those of the manifests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use lb_tests::{
    cluster::{Cluster, url},
    lab::{Family, Node, Process, Shape},
    workload::HttpRequest,
};
use serde_json::{Value, json};

use crate::{
    kustomize::{self, kind},
    manifests::deploy,
};

/// Where a service account's token is mounted.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Names the archive to test instead of building one.
const IMAGE: &str = "LB_IMAGE";
/// Longer than a command of the agent takes.
const LIMIT: Duration = Duration::from_secs(20);

/// The archive: the one that `LB_IMAGE` names, else one built for the purpose, not optimised.
fn archive(directory: &Path) -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(IMAGE).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let path = directory.join("image.tar");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(deploy("..")).args(["xtask", "image", "--dev", "--output"]).arg(&path);
    ensure!(command.status()?.success(), "cargo xtask image --dev failed; its words are above");
    Ok(path)
}

/// Unpacks the archive with tools that know nothing of ours, checks every digest, and lays out the root file system.
/// Returns the image's configuration.
fn unpack(archive: &Path, root: &Path) -> anyhow::Result<Value> {
    let layout = root.with_extension("layout");
    for directory in [&layout, &root.to_path_buf()] {
        fs::create_dir_all(directory)?;
    }
    let run = |command: &mut Command| {
        let output = command.output().with_context(|| format!("{command:?}"))?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&layout))?;
    let sums = layout.join("blobs/sha256");
    for entry in fs::read_dir(&sums)? {
        let path = entry?.path();
        let line = run(Command::new("sha256sum").arg(&path))?;
        ensure!(path.ends_with(line.split(' ').next().unwrap_or_default()), "{line}");
    }
    let read = |path: &str| anyhow::Ok(serde_json::from_slice::<Value>(&fs::read(layout.join(path))?)?);
    let blob = |descriptor: &Value| {
        descriptor["digest"].as_str().context("a digest").map(|it| format!("blobs/{}", it.replace(':', "/")))
    };
    let manifest = read(&blob(&read("index.json")?["manifests"][0])?)?;
    for layer in manifest["layers"].as_array().context("layers")? {
        run(Command::new("tar").arg("-xzf").arg(layout.join(blob(layer)?)).arg("-C").arg(root))?;
    }
    read(&blob(&manifest["config"])?)
}

/// A pod of a DaemonSet as the runtime's specification: of its first container, or its first init container.
struct Pod<'a> {
    /// The pod template's `spec`.
    spec: &'a Value,
    container: &'a Value,
    image: &'a Value,
    settings: &'a Value,
}

impl Pod<'_> {
    /// The bundle's `config.json`. `sources` gives directories of the lab for host paths, `env` what the cluster would.
    fn runtime_spec(&self, node: &Node, sources: &[(&str, &Path)], env: &[(String, String)]) -> Value {
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().map(|it| it.as_str().unwrap().to_owned()).collect()
        };
        let security = &self.container["securityContext"];
        let added = texts(&security["capabilities"]["add"]);
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "nothing but what is added");
        let capabilities: Vec<String> = added.iter().map(|name| format!("CAP_{name}")).collect();
        let mut variables = texts(&self.image["config"]["Env"]);
        variables.extend(self.variables(node));
        variables.extend(env.iter().map(|(name, value)| format!("{name}={value}")));
        let mut arguments = texts(&self.image["config"]["Entrypoint"]);
        arguments.extend(texts(&self.container["args"]));
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": security["runAsUser"], "gid": 0},
                "args": arguments,
                "env": variables,
                "cwd": "/",
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
                "noNewPrivileges": security["allowPrivilegeEscalation"] == false,
            },
            "root": {"path": "root", "readonly": security["readOnlyRootFilesystem"]},
            "hostname": node.name(),
            "mounts": self.mounts(sources),
            "linux": {
                "cgroupsPath": format!("/{}", node.bpffs().file_name().unwrap().to_string_lossy()),
                "namespaces": [
                    {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                    // hostNetwork.
                    {"type": "network", "path": format!("/run/netns/{}", node.namespace().name())},
                ],
                // Those of containerd's default.
                "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        })
    }

    /// The container's environment as kubelet resolves it.
    fn variables(&self, node: &Node) -> Vec<String> {
        let settings = self.settings["data"].as_object().into_iter().flatten();
        let mut all: Vec<String> =
            settings.map(|(name, value)| format!("{name}={}", value.as_str().unwrap())).collect();
        for variable in self.container["env"].as_array().into_iter().flatten() {
            let addresses: Vec<String> = node.addresses().iter().map(ToString::to_string).collect();
            let value = match variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str) {
                Some("spec.nodeName") => node.name().to_owned(),
                Some("status.hostIPs") => addresses.join(","),
                Some(other) => panic!("unexpected field {other}"),
                None => variable["value"].as_str().unwrap().to_owned(),
            };
            all.push(format!("{}={value}", variable["name"].as_str().unwrap()));
        }
        all
    }

    fn mounts(&self, sources: &[(&str, &Path)]) -> Value {
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "nodev", "ro"]}),
        ];
        for mount in self.container["volumeMounts"].as_array().unwrap() {
            let volumes = self.spec["volumes"].as_array().unwrap();
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
            let access = if mount["readOnly"] == true { "ro" } else { "rw" };
            mounts.push(match volume.pointer("/hostPath/path").and_then(Value::as_str) {
                Some(path) => {
                    let source = sources.iter().find(|(host, _)| *host == path).map(|(_, source)| source);
                    json!({
                        "destination": mount["mountPath"], "type": "bind",
                        "source": source.unwrap_or_else(|| panic!("{path} is not in the lab")),
                        "options": ["rbind", "rprivate", access],
                    })
                }
                None => {
                    assert_eq!(volume["emptyDir"]["medium"], "Memory");
                    json!({"destination": mount["mountPath"], "type": "tmpfs", "source": "tmpfs", "options": [access]})
                }
            });
        }
        for (host, source) in sources.iter().filter(|(host, _)| *host == ACCOUNT) {
            mounts.push(
                json!({"destination": host, "type": "bind", "source": source, "options": ["rbind", "ro"]}),
            );
        }
        Value::Array(mounts)
    }
}

/// Writes a bundle for the container and returns its directory.
fn bundle(directory: &Path, name: &str, root: &Path, spec: &Value) -> PathBuf {
    let bundle = directory.join(name);
    fs::create_dir_all(bundle.join("root")).unwrap();
    let mut spec = spec.clone();
    spec["root"]["path"] = root.display().to_string().into();
    fs::write(bundle.join("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    bundle
}

/// A container in the foreground of a process of the lab; it is killed when this is dropped.
struct Container<'a> {
    node: &'a Node,
    /// `runc`'s own files.
    state: String,
    name: String,
    process: Process,
}

impl<'a> Container<'a> {
    fn start(node: &'a Node, state: &Path, bundle: &Path, name: &str) -> Self {
        let (state, bundle) = (state.display().to_string(), bundle.display().to_string());
        let process =
            node.spawn(&["runc", "--root", &state, "run", "--bundle", &bundle, name], &[], name).unwrap();
        Self { node, state, name: name.to_owned(), process }
    }

    /// `kubectl exec`: whether it succeeded, and what it printed.
    async fn exec(&self, command: &[&str]) -> (bool, String) {
        let mut argv = vec!["runc", "--root", &self.state, "exec", &self.name];
        argv.extend(command);
        let output = self.node.exec(&argv, &[], LIMIT).await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Waits until its readiness probe succeeds.
    async fn ready(&self, probe: &[&str]) {
        let begin = Instant::now();
        while !self.exec(probe).await.0 {
            let runs = self.process.exit_status().is_none();
            assert!(runs && begin.elapsed() < LIMIT, "not ready:\n{}", self.process.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// SIGKILL to everything in it.
    async fn kill(&self) {
        let argv = ["runc", "--root", &self.state, "kill", &self.name, "KILL"];
        assert!(self.node.exec(&argv, &[], LIMIT).await.unwrap().status.success());
        self.process.wait(LIMIT).await.unwrap();
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // Fails for one that has ended, which is as well.
        let _ended =
            Command::new("runc").args(["--root", &self.state, "delete", "--force", &self.name]).output();
    }
}

/// What a probe runs.
fn command(probe: &Value) -> Vec<&str> {
    probe["exec"]["command"].as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_image_serves_as_a_container_with_the_manifests_capabilities_only() {
    let cluster =
        Cluster::builder().nodes(1).family(Family::V4).shape(Shape::Routed).without_dns().without_agents();
    let cluster = cluster.agents_learn_service_cidrs().start().await.unwrap();
    let node = cluster.node(0);
    let directory = cluster.lab().state_dir().to_path_buf();
    let (root, state) = (directory.join("image"), directory.join("runc"));
    let config = unpack(&archive(&directory).unwrap(), &root).unwrap();

    // What kubelet gives to a pod.
    let account = directory.join("account");
    fs::create_dir_all(&account).unwrap();
    let server = cluster.api_server().own();
    fs::write(account.join("token"), server.token()).unwrap();
    fs::write(account.join("ca.crt"), server.ca_pem().unwrap()).unwrap();
    fs::write(account.join("namespace"), "kube-system").unwrap();
    let sources = [
        ("/sys/fs/bpf", Path::new("/sys/fs/bpf")),
        ("/sys/fs/cgroup", node.cgroup()),
        (ACCOUNT, account.as_path()),
    ];
    let bpf_root = ("LB_AGENT_BPF_ROOT".to_owned(), cluster.bpf_root(node).display().to_string());
    let env = [
        // Where nobody listens: the Service `kubernetes` does not work before the agent does.
        ("KUBERNETES_SERVICE_HOST".to_owned(), "10.96.0.1".to_owned()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), "443".to_owned()),
        ("LB_AGENT_SERVER".to_owned(), cluster.api_server().url()),
        bpf_root.clone(),
    ];

    let objects = kustomize::build(&deploy("overlays/replace-kube-proxy")).unwrap();
    let object = |wanted: &str| objects.iter().find(|object| kind(object) == wanted).unwrap();
    let spec = &object("DaemonSet")["spec"]["template"]["spec"];
    let container = &spec["containers"][0];
    let pod = Pod { spec, container, image: &config, settings: object("ConfigMap") };
    let agent_bundle = bundle(&directory, "agent", &root, &pod.runtime_spec(node, &sources, &env));
    let name = format!("{}-agent", cluster.lab().prefix());
    let agent = Container::start(node, &state, &agent_bundle, &name);
    let probe = command(&container["readinessProbe"]);
    agent.ready(&probe).await;

    let (fine, text) = agent.exec(&command(&container["livenessProbe"])).await;
    assert!(fine, "{text}");
    let (fine, text) = agent.exec(&["lb-agent", "set", "log=debug"]).await;
    assert!(fine && text.contains("log=debug"), "{text}");

    // What a person looks at first.
    let (fine, text) = agent.exec(&["lb-agent", "check"]).await;
    assert!(fine, "{text}");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    cluster.api().create(&service).unwrap();
    let client = cluster.netexec_pod("default", "client", node, &json!({})).await.unwrap();
    cluster.netexec_pod("default", "web", node, &json!({"app": "web"})).await.unwrap();
    let web = url(cluster.cluster_ip("default", "web").unwrap(), 80, "/hostname");
    let served = async || HttpRequest::get(&web).send(&client).await;
    let begin = Instant::now();
    while served().await.is_err() {
        assert!(begin.elapsed() < LIMIT, "the pod is not served:\n{}", agent.process.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(served().await.unwrap().text(), "web");
    // A process of the node: the programs at its cgroup.
    let curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", "5", web.as_str()];
    let answer = node.exec(&curl, &[], LIMIT).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&[answer.stdout, answer.stderr].concat()), "web");
    let (fine, text) = agent.exec(&["lb-agent", "services"]).await;
    assert!(fine && text.contains("default/web"), "{text}");

    // Killed: Services go on, and the next container takes over.
    agent.kill().await;
    assert_eq!(served().await.unwrap().text(), "web");
    drop(agent);
    let agent = Container::start(node, &state, &agent_bundle, &name);
    agent.ready(&probe).await;
    assert!(agent.process.log().contains("adopted"), "{}", agent.process.log());
    assert_eq!(served().await.unwrap().text(), "web");
    agent.process.signal(libc::SIGTERM).unwrap();
    assert!(agent.process.wait(LIMIT).await.unwrap().success(), "{}", agent.process.log());
    // Nothing that it tried was refused for want of a capability.
    let log = agent.process.log();
    let refused =
        ["not permitted", "ermission denied", "EPERM", "EACCES", "ERROR"].iter().find(|it| log.contains(*it));
    assert_eq!(refused, None, "{log}");
    assert_eq!(served().await.unwrap().text(), "web");

    // And the clean-up, with what its manifest gives it.
    let objects = kustomize::build(&deploy("cleanup")).unwrap();
    let spec = &objects[0]["spec"]["template"]["spec"];
    let pod = Pod { spec, container: &spec["initContainers"][0], image: &config, settings: &Value::Null };
    let spec = pod.runtime_spec(node, &sources, &[bpf_root]);
    let cleanup = bundle(&directory, "cleanup", &root, &spec);
    let cleanup = Container::start(node, &state, &cleanup, &format!("{name}-cleanup"));
    assert!(cleanup.process.wait(LIMIT).await.unwrap().success(), "{}", cleanup.process.log());
    assert!(!cluster.bpf_root(node).exists(), "{}", cleanup.process.log());
    assert!(served().await.is_err(), "somebody still serves");
}
