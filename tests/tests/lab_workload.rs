//! The lab's servers and clients, its pod runtime and its agent handle, without any agent.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod as ApiPod;
use lb_tests::{
    lab::{AgentOptions, ContainerHandle, Family, Lab, LabRuntime, Pod},
    netns::Namespace,
    runtime::{PodRuntime, RuntimeFuture},
    workload::{
        Bulk, Direction, HttpRequest, Load, NetError, Netexec, TcpEcho, TcpOptions, UdpClient, http_get,
        ping, resolve, tcp_connect, tcp_connect_with,
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SHORT: Duration = Duration::from_secs(3);

fn two_pods(family: Family) -> (Lab, Pod, Pod) {
    let lab = Lab::builder().family(family).build().unwrap();
    let (client, server) = (lab.node(0).pod("client").unwrap(), lab.node(0).pod("server").unwrap());
    (lab, client, server)
}

fn url(server: IpAddr, path: &str) -> String {
    format!("http://{}{path}", SocketAddr::new(server, 8080))
}

#[tokio::test]
async fn netexec_answers_what_agnhost_answers() {
    let (_lab, client, pod) = two_pods(Family::Dual);
    let server = Netexec::new("server-0").http(8080).http(80).udp(8081).start(&pod).await.unwrap();
    for address in pod.addresses() {
        let get = async |path: &str| http_get(&client, &url(*address, path)).await.unwrap();
        assert_eq!(get("/hostname").await.text(), "server-0");
        assert_eq!(get("/").await.text(), "server-0");
        assert_eq!(get("/echo?msg=hello+world").await.text(), "hello world");
        let seen = get("/clientip").await;
        assert_eq!(seen.text(), seen.local.to_string());
        assert_eq!(get("/nothing").await.status, 404);
        assert_eq!(
            http_get(&client, &format!("{}", SocketAddr::new(*address, 80))).await.unwrap().text(),
            "server-0"
        );

        let udp = UdpClient::connect(&client, SocketAddr::new(*address, 8081), None, 4321).await.unwrap();
        assert_eq!(udp.ask("echo a b", SHORT).await, Ok("a b".to_owned()));
        assert_eq!(udp.ask("clientip", SHORT).await, Ok(udp.local().unwrap().to_string()));
        assert_eq!(udp.local().unwrap().port(), 4321);
        assert_eq!(udp.ask("nonsense", Duration::from_millis(50)).await, Err(NetError::Timeout));
    }
    assert_eq!(server.requests(), 2 * 8);
    let late = HttpRequest::get(&url(pod.address(), "/?wait=500")).timeout(Duration::from_millis(50));
    assert_eq!(late.send(&client).await.err(), Some(NetError::Timeout));
    let begin = Instant::now();
    http_get(&client, &url(pod.address(), "/?wait=60")).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(60));
}

#[tokio::test]
async fn failures_are_told_apart() {
    let (_lab, client, pod) = two_pods(Family::Dual);
    for address in pod.addresses() {
        let closed = SocketAddr::new(*address, 9);
        assert_eq!(tcp_connect(&client, closed).await.err(), Some(NetError::Refused));
        assert_eq!(http_get(&client, &format!("{closed}")).await.err(), Some(NetError::Refused));
        let udp = UdpClient::connect(&client, closed, None, 0).await.unwrap();
        assert_eq!(udp.ask("hostname", SHORT).await, Err(NetError::Refused), "{closed}");
    }
    // A full queue: the kernel drops the SYN, as a firewall would.
    let listener = pod.namespace().tcp_listener(SocketAddr::new(pod.address(), 7)).unwrap();
    socket_backlog_of_one(&listener);
    let full = SocketAddr::new(pod.address(), 7);
    let options = TcpOptions { timeout: Duration::from_millis(200), ..TcpOptions::default() };
    let mut held = Vec::new();
    let outcome = loop {
        match tcp_connect_with(&client, full, options).await {
            Ok(stream) if held.len() < 10 => held.push(stream),
            outcome => break outcome.err(),
        }
    };
    assert_eq!(outcome, Some(NetError::Timeout), "after {} connections", held.len());
    let unknown = http_get(&client, "http://nobody.example.invalid/").await;
    assert!(matches!(unknown, Err(NetError::Dns(_) | NetError::Timeout)), "{unknown:?}");
    assert_eq!(resolve(&client, "[fd00::1]").await, Ok(vec!["fd00::1".parse().unwrap()]));
    let nowhere = ping(&client, "203.0.113.1".parse().unwrap(), Duration::from_millis(300)).await;
    assert!(nowhere.is_err());
}

/// Calls `listen` again with the shortest queue.
fn socket_backlog_of_one(listener: &std::net::TcpListener) {
    use std::os::fd::AsRawFd;
    // SAFETY: takes no pointers; the descriptor is open.
    let result = unsafe { libc::listen(listener.as_raw_fd(), 0) };
    assert_eq!(result, 0);
}

#[tokio::test]
async fn source_address_and_port_can_be_chosen() {
    let (_lab, client, pod) = two_pods(Family::V4);
    let _server = Netexec::new("s").http(8080).start(&pod).await.unwrap();
    let tcp = TcpOptions {
        source: Some(client.address()),
        source_port: 5555,
        reset_on_close: true,
        ..TcpOptions::default()
    };
    for _ in 0..3 {
        let seen = HttpRequest::get(&url(pod.address(), "/clientip")).tcp(tcp).send(&client).await.unwrap();
        assert_eq!(seen.text(), format!("{}:5555", client.address()));
    }
}

#[tokio::test]
async fn keep_alive_uses_one_connection() {
    let (_lab, client, pod) = two_pods(Family::V6);
    let server = Netexec::new("s").http(8080).start(&pod).await.unwrap();
    let mut connection = HttpRequest::get(&url(pod.address(), "/")).connect(&client).await.unwrap();
    for _ in 0..5 {
        assert_eq!(connection.get("/clientip").await.unwrap().text(), connection.local().to_string());
    }
    assert_eq!((server.connections(), server.requests()), (1, 5));
    server.kill().await;
    assert!(connection.get("/").await.is_err(), "the connection outlived its server");
}

#[tokio::test]
async fn shutting_down_finishes_what_was_begun() {
    let (_lab, client, pod) = two_pods(Family::V4);
    let server = Netexec::new("s").http(8080).start(&pod).await.unwrap();
    let mut idle = HttpRequest::get(&url(pod.address(), "/")).connect(&client).await.unwrap();
    idle.get("/").await.unwrap();
    let (asking, address) = (client.clone(), pod.address());
    let slow = tokio::spawn(async move { http_get(&asking, &url(address, "/echo?msg=done&wait=400")).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let stopping = tokio::spawn(server.shut_down(Duration::from_millis(150), SHORT));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(http_get(&client, &url(address, "/")).await.is_ok(), "refused during the delay");
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(http_get(&client, &url(address, "/")).await.err(), Some(NetError::Refused));
    assert_eq!(slow.await.unwrap().unwrap().text(), "done");
    tokio::time::timeout(SHORT, stopping).await.expect("an idle connection held it up").unwrap();
    assert!(idle.get("/").await.is_err());
}

#[tokio::test]
async fn bulk_transfers_are_checked_in_both_directions() {
    let (_lab, client, pod) = two_pods(Family::Dual);
    let _server = Bulk::start(&pod, 5201).await.unwrap();
    let _echo = TcpEcho::start(&pod, 7).await.unwrap();
    let limit = Duration::from_secs(60);
    for address in pod.addresses() {
        let to = SocketAddr::new(*address, 5201);
        for (direction, bytes) in [(Direction::Upload, 3_000_001), (Direction::Download, 2_000_003)] {
            let report = Bulk::transfer(&client, to, direction, bytes, 42, limit).await.unwrap();
            assert_eq!(report.bytes, bytes);
            assert!(report.gbit_per_second() > 0.0);
        }
        // The echo server sends back the header instead of a checksum of the content.
        let wrong = SocketAddr::new(*address, 7);
        let wrong = Bulk::transfer(&client, wrong, Direction::Upload, 1000, 42, limit).await;
        assert!(matches!(wrong, Err(NetError::BadAnswer(_))), "{wrong:?}");
        let mut stream = tcp_connect(&client, SocketAddr::new(*address, 7)).await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        let mut buffer = [0; 4];
        stream.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"ping");
    }
}

#[tokio::test]
async fn loads_count_answers_failures_and_gaps() {
    let (_lab, client, pod) = two_pods(Family::V4);
    let start = async || Netexec::new("s").http(8080).udp(8081).start(&pod).await.unwrap();
    let server = start().await;
    // A datagram that was on its way when the server ended is neither answered nor refused: longer down than that.
    let (fast, timeout, down) =
        (Duration::from_millis(2), Duration::from_millis(400), Duration::from_secs(1));
    let loads = [
        Load::http(&url(pod.address(), "/hostname")),
        Load::keep_alive(&url(pod.address(), "/hostname")),
        Load::udp(&pod.address().to_string(), 8081),
        Load::udp_one_socket(&pod.address().to_string(), 8081),
    ];
    let running: Vec<_> =
        loads.iter().map(|load| load.clone().interval(fast).timeout(timeout).start(&client)).collect();
    for load in &running {
        let report = load.wait_for(20, SHORT).await.unwrap();
        assert_eq!(report.failures, [], "{report}");
        assert_eq!(report.by_backend.keys().collect::<Vec<_>>(), ["s"]);
    }
    assert_eq!(running[1].report().connections, 1);
    assert_eq!(running[3].report().connections, 1);
    assert!(running[0].report().connections >= 20);
    server.kill().await;
    tokio::time::sleep(down).await;
    let server = start().await;
    for load in running {
        let answered = load.report().successes();
        load.wait_for(answered + 5, SHORT).await.unwrap();
        let report = load.stop().await;
        assert!(!report.failures.is_empty(), "{report}");
        assert!(report.longest_gap >= down, "{report}");
        assert!(report.failures.iter().any(|failure| failure.reason == NetError::Refused), "{report}");
    }
    drop(server);
}

fn kube_pod(text: &str) -> ApiPod {
    serde_saphyr::from_str(text).unwrap()
}

const ORDER: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: order-0
  namespace: snackbar
spec:
  containers:
  - name: order
    image: registry.k8s.io/e2e-test-images/agnhost:2.53
    args: ["netexec", "--http-port=$(PORT)", "--udp-port", "9001"]
    env:
    - {name: PORT, value: "9000"}
    - {name: PAYMENT, value: "http://$(PAYMENT_SERVICE_HOST):$(PAYMENT_SERVICE_PORT)"}
    - {name: PAYMENT_SERVICE_PORT, value: "81"}
    - {name: ME, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
  - name: database
    image: mariadb:11
  - name: pause
    image: registry.k8s.io/pause:3.10
"#;

#[tokio::test]
async fn kubernetes_pods_run_in_the_lab() {
    let lab = Lab::builder().nodes(2).zones(["a", "b"]).family(Family::Dual).build().unwrap();
    let lab_runtime = LabRuntime::new(&lab);
    let runtime: Arc<dyn PodRuntime> = lab_runtime.clone();
    let nodes = runtime.nodes();
    assert_eq!(nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["n1", "n2"]);
    assert_eq!(nodes[1].zone.as_deref(), Some("b"));
    assert_eq!(nodes[1].pod_cidrs, ["10.244.2.0/24", "fd00:10:244:2::/64"]);

    let env = [("PAYMENT_SERVICE_HOST", "10.96.3.4"), ("PAYMENT_SERVICE_PORT", "80")];
    let env = env.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let addresses = runtime.start_pod(kube_pod(ORDER), "n2", env.clone()).await.unwrap();
    runtime.wait_ready("snackbar", "order-0").await.unwrap();
    let answer = http_get(lab.node(0), &format!("{}", SocketAddr::new(addresses[0], 9000))).await.unwrap();
    assert_eq!(answer.text(), "order-0");
    let udp = SocketAddr::new(addresses[1], 9001);
    let udp = UdpClient::connect(lab.node(0), udp, None, 0).await.unwrap();
    assert_eq!(udp.ask("hostname", SHORT).await, Ok("order-0".to_owned()));
    tcp_connect(lab.node(0), SocketAddr::new(addresses[0], 3306)).await.unwrap();

    let pod = lab_runtime.pod("snackbar", "order-0").unwrap();
    assert_eq!(pod.addresses(), addresses);
    assert_eq!(pod.env_var("PAYMENT"), Some("http://10.96.3.4:80"));
    assert_eq!(pod.env_var("PAYMENT_SERVICE_PORT"), Some("81"), "the container's own variable wins");
    let script = "echo $ME $PAYMENT_SERVICE_HOST; grep search /etc/resolv.conf";
    let output = pod.exec(&["sh", "-c", script], SHORT).await.unwrap();
    let wanted = format!(
        "{} 10.96.3.4\nsearch snackbar.svc.cluster.local svc.cluster.local cluster.local\n",
        addresses[0]
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), wanted);

    assert!(runtime.start_pod(kube_pod(ORDER), "n1", env.clone()).await.is_err(), "the same pod twice");
    let begin = Instant::now();
    let (first, second) = tokio::join!(
        runtime.stop_pod("snackbar", "order-0", SHORT),
        runtime.stop_pod("snackbar", "order-0", SHORT)
    );
    first.and(second).unwrap();
    assert!(begin.elapsed() < SHORT, "an idle pod took its whole grace period");
    assert!(lab_runtime.pods().is_empty());
    assert!(lab.node(1).pods().is_empty());
    runtime.stop_pod("snackbar", "order-0", SHORT).await.unwrap();
    assert!(runtime.wait_ready("snackbar", "order-0").await.is_err());
}

#[tokio::test]
async fn what_the_lab_cannot_run_is_refused_and_leaves_nothing() {
    let lab = Lab::builder().build().unwrap();
    let runtime = LabRuntime::new(&lab);
    let changed = |from: &str, to: &str| kube_pod(&ORDER.replace(from, to));
    for (pod, node, why) in [
        (changed("mariadb:11", "nobody/knows:1"), "n1", "does not know image"),
        (changed("", ""), "n9", "no node n9"),
        (changed("status.podIP", "status.phase"), "n1", "unknown field"),
        (changed("\"9000\"", "\"many\""), "n1", "many"),
        (changed("\"netexec\"", "\"dance\""), "n1", "dance"),
    ] {
        let error = runtime.start_pod(pod, node, Vec::new()).await.unwrap_err();
        assert!(format!("{error:#}").contains(why), "{error:#}");
        assert!(lab.node(0).pods().is_empty() && runtime.pods().is_empty(), "{why}");
    }
}

#[derive(Clone, Default)]
struct Flag(Arc<AtomicBool>);

impl ContainerHandle for Flag {
    fn stop(&self, _grace: Duration) -> RuntimeFuture<'_, ()> {
        self.0.store(true, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    }
}

#[tokio::test]
async fn images_host_network_and_fixed_addresses() {
    let lab = Lab::builder().build().unwrap();
    let runtime = LabRuntime::new(&lab);
    let stopped = Flag::default();
    let handle = stopped.clone();
    runtime.register(
        "registry.k8s.io/coredns/coredns",
        Arc::new(move |container| {
            let handle = handle.clone();
            Box::pin(async move {
                assert_eq!(container.flag("conf"), Some("/etc/coredns/Corefile"));
                Ok(Box::new(handle) as Box<dyn ContainerHandle>)
            })
        }),
    );
    let dns = "{metadata: {name: dns, namespace: kube-system, annotations: {cni.projectcalico.org/ipAddrs: \
               '[\"10.244.1.77\"]'}}, spec: {containers: [{name: dns, image: registry.k8s.io/coredns/coredns:v1.12, \
               args: [--conf, /etc/coredns/Corefile]}]}}";
    let addresses = runtime.start_pod(kube_pod(dns), "n1", Vec::new()).await.unwrap();
    assert_eq!(addresses, ["10.244.1.77".parse::<IpAddr>().unwrap()]);
    runtime.stop_pod("kube-system", "dns", SHORT).await.unwrap();
    assert!(stopped.0.load(Ordering::Relaxed));

    let host = "{metadata: {name: host}, spec: {hostNetwork: true, containers: [{name: web, image: agnhost, \
                args: [netexec, --http-port=8080, --udp-port=-1]}]}}";
    let addresses = runtime.start_pod(kube_pod(host), "n1", Vec::new()).await.unwrap();
    assert_eq!(addresses, lab.node(0).addresses());
    let pod = runtime.pod("default", "host").unwrap();
    assert_eq!(http_get(&pod, &url(addresses[0], "/")).await.unwrap().text(), "host");
    assert!(std::ptr::eq(AsRef::<Namespace>::as_ref(&pod), lab.node(0).namespace()));
    runtime.stop_pod("default", "host", SHORT).await.unwrap();
    assert_eq!(http_get(lab.node(0), &url(addresses[0], "/")).await.err(), Some(NetError::Refused));
}

#[tokio::test]
async fn agents_are_started_watched_and_ended() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    // A stand-in: becomes ready a moment after its start, ends with code 7 when told to.
    let script = "trap 'exit 7' TERM; echo started in $(readlink /proc/self/ns/net) $(readlink /proc/self/ns/mnt); \
                  echo 'already up'; sleep 0.1; touch \"$1\"; while :; do sleep 0.01; done";
    let mut options = AgentOptions::new(["-c", script]);
    options.binary = Some("/bin/sh".into());
    let mut agent = node.start_agent(options).unwrap();
    assert!(!agent.is_ready());
    agent.wait_ready().await.unwrap();
    let inode = |path: &str| fs::read_link(path).unwrap().to_string_lossy().into_owned();
    let log = agent.log();
    let mounts = inode("/proc/self/ns/mnt");
    assert!(log.contains(&mounts), "its own mount namespace: {log}");
    assert!(!log.contains(&inode("/proc/self/ns/net")), "not in the node's network: {log}");
    let members = fs::read_to_string(node.cgroup().join("cgroup.procs")).unwrap();
    assert!(members.lines().any(|pid| pid == agent.pid().to_string()), "{members}");

    let first = agent.pid();
    agent.sigkill();
    assert!(agent.exit_status().is_some_and(|status| !status.success()));
    agent.restart().unwrap();
    assert_ne!(agent.pid(), first);
    assert!(!agent.is_ready(), "readiness of the process before");
    agent.wait_ready().await.unwrap();
    assert_eq!(agent.log().matches("started in").count(), 2);
    assert_eq!(agent.sigterm().await.unwrap().code(), Some(7));

    let mut options = AgentOptions::new(["-c", "echo 'cannot go on' >&2; exit 3"]);
    options.binary = Some("/bin/sh".into());
    let failed = node.start_agent(options).unwrap().wait_ready().await.unwrap_err();
    assert!(failed.to_string().contains("cannot go on"), "{failed}");

    let mut options = AgentOptions::new(["-c", "echo not yet; sleep 0.1; echo 'state=ready'; sleep 60"]);
    (options.binary, options.no_ready_file) = (Some("/bin/sh".into()), true);
    let by_log = node.start_agent(options).unwrap();
    by_log.wait_ready().await.unwrap();
    let pid = by_log.pid();
    drop(by_log);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}
