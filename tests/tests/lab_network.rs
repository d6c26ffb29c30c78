//! The lab's networks by themselves, without any agent: reachability, life and death of pods, clean-up.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use lb_tests::{
    lab::{Family, Lab, PodSpec, Shape, Underlay, remove_kept, remove_leftovers},
    netns::{NETNS_DIR, Namespace},
    workload::{NetError, Netexec, UdpClient, http_get, ping, tcp_connect},
};

const SHORT: Duration = Duration::from_secs(3);

/// Asks the server at `to` by HTTP and UDP who it is, and whom it sees.
async fn check(what: &str, from: &impl AsRef<Namespace>, own: &[IpAddr], to: IpAddr, name: &str) {
    let url = |path: &str| format!("http://{}/{path}", SocketAddr::new(to, 8080));
    let answer =
        http_get(from, &url("hostname")).await.unwrap_or_else(|error| panic!("{what} to {to}: {error}"));
    assert_eq!(answer.text(), name, "{what} to {to}");
    let seen: SocketAddr = http_get(from, &url("clientip")).await.unwrap().text().parse().unwrap();
    assert!(own.contains(&seen.ip()), "{what} to {to}: the server sees {seen}, not one of {own:?}");
    let client = UdpClient::connect(from, SocketAddr::new(to, 8081), None, 0).await.unwrap();
    assert_eq!(client.ask("hostname", SHORT).await, Ok(name.to_owned()), "{what} to {to} by UDP");
    ping(from, to, SHORT).await.unwrap_or_else(|error| panic!("{what} pings {to}: {error}"));
}

#[tokio::test]
async fn everyone_reaches_everyone_in_every_shape_and_family() {
    for shape in Shape::ALL {
        for family in Family::ALL {
            let lab = Lab::builder().nodes(2).clients(1).shape(shape).family(family).build().unwrap();
            let client = lab.node(0).pod("client").unwrap();
            let server = Netexec::new("near").http(8080).udp(8081);
            let near = lab.node(0).pod("near").unwrap();
            let near_server = server.start(&near).await.unwrap();
            let far = lab.node(1).pod("far").unwrap();
            let _far = Netexec::new("far").http(8080).udp(8081).start(&far).await.unwrap();
            let _host = Netexec::new("host").http(8080).udp(8081).start(lab.node(1)).await.unwrap();

            let families = usize::from(family.has_v4()) + usize::from(family.has_v6());
            assert_eq!(client.addresses().len(), families, "{shape:?} {family:?}");
            let here = |what: &str| format!("{shape:?} {family:?}: {what}");
            for (position, address) in near.addresses().iter().enumerate() {
                check(&here("pod, same node"), &client, client.addresses(), *address, "near").await;
                check(&here("pod, to itself"), &near, near.addresses(), *address, "near").await;
                check(&here("its node"), lab.node(0), &all_addresses(&lab), *address, "near").await;
                check(&here("another node"), lab.node(1), lab.node(1).addresses(), *address, "near").await;
                let far = far.addresses()[position];
                check(&here("pod, other node"), &client, client.addresses(), far, "far").await;
                let host = lab.node(1).addresses()[position];
                check(&here("pod, other host"), &client, client.addresses(), host, "host").await;
                let outside = lab.client(0);
                check(&here("client outside"), outside, outside.addresses(), host, "host").await;
            }
            assert!(near_server.requests() > 0);
        }
    }
}

/// What a process on node 1 may have as source: its own address, or its side of the pod network.
fn all_addresses(lab: &Lab) -> Vec<IpAddr> {
    let node = lab.node(0);
    let gateways = node.pod_cidrs().iter().map(|cidr| cidr.nth(1));
    node.addresses().iter().copied().chain(gateways).collect()
}

#[tokio::test]
async fn direct_underlay_joins_two_nodes_with_nothing_in_between() {
    let lab = Lab::builder().nodes(2).underlay(Underlay::Direct).family(Family::Dual).build().unwrap();
    let (near, far) = (lab.node(0).pod("near").unwrap(), lab.node(1).pod("far").unwrap());
    for address in far.addresses() {
        ping(&near, *address, SHORT).await.unwrap_or_else(|error| panic!("{address}: {error}"));
    }
    assert!(lab.switch().is_none());
    assert!(Lab::builder().nodes(3).underlay(Underlay::Direct).build().is_err());
}

#[tokio::test]
async fn cni_shapes_look_like_the_real_ones() {
    let routed = Lab::builder().family(Family::Dual).build().unwrap();
    let pod = routed.node(0).pod("web").unwrap();
    let device = &pod.host_device().name;
    assert!(device.starts_with("cali") && device.len() <= 15, "{device}");
    let ip = async |place: &Lab, argv: &[&str]| {
        let output = place.node(0).exec(argv, &[], SHORT).await.unwrap();
        assert!(output.status.success(), "{argv:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let routes = ip(&routed, &["ip", "-4", "route"]).await;
    assert!(routes.contains(&format!("{} dev {device} ", pod.address())), "{routes}");
    let routes = ip(&routed, &["ip", "-6", "route"]).await;
    assert!(routes.contains(&format!("{} dev {device}", pod.ipv6().unwrap())), "{routes}");
    let inside = pod.exec(&["ip", "route"], &[], SHORT).await.unwrap();
    let inside = String::from_utf8(inside.stdout).unwrap();
    assert!(inside.contains("default via 169.254.1.1 dev eth0"), "{inside}");

    let bridged = Lab::builder().shape(Shape::Bridged).mtu(1450).build().unwrap();
    let pod = bridged.node(0).pod("web").unwrap();
    assert!(pod.host_device().name.starts_with("veth"), "{:?}", pod.host_device());
    let links = ip(&bridged, &["ip", "-d", "link", "show", &pod.host_device().name]).await;
    for wanted in ["master cni0", "hairpin on", "mtu 1450"] {
        assert!(links.contains(wanted), "no {wanted}: {links}");
    }
    let inside = pod.exec(&["ip", "route"], &[], SHORT).await.unwrap();
    let inside = String::from_utf8(inside.stdout).unwrap();
    assert!(inside.contains("default via 10.244.1.1 dev eth0"), "{inside}");
}

#[tokio::test]
async fn pods_come_and_go() {
    for shape in Shape::ALL {
        let lab = Lab::builder().shape(shape).family(Family::Dual).build().unwrap();
        let node = lab.node(0);
        let watcher = node.pod("watcher").unwrap();
        let first = node.pod("web").unwrap();
        assert!(node.add_pod(PodSpec::new("web")).is_err(), "two pods of one name");
        let (namespace, old) = (first.namespace().name().to_owned(), first.addresses().to_vec());
        assert!(Path::new(NETNS_DIR).join(&namespace).exists());
        first.remove().unwrap();
        first.remove().unwrap();
        assert!(!Path::new(NETNS_DIR).join(&namespace).exists());
        assert!(!Path::new("/etc/netns").join(&namespace).exists());
        assert_eq!(node.pods().len(), 1);

        let second = node.pod("web").unwrap();
        assert!(second.addresses().iter().all(|address| !old.contains(address)), "addresses return at once");
        for address in &old {
            assert!(
                ping(&watcher, *address, Duration::from_millis(200)).await.is_err(),
                "{address} still answers"
            );
        }
        let third = node.add_pod(PodSpec::new("again").addresses(old.iter().copied())).unwrap();
        assert_eq!(third.addresses(), old);
        for address in &old {
            ping(&watcher, *address, SHORT)
                .await
                .unwrap_or_else(|error| panic!("{shape:?} {address}: {error}"));
        }
    }
}

/// A node's netlink socket lists one thing at a time (`EBUSY`); making a pod must not depend on it.
#[tokio::test]
async fn pods_are_made_at_the_same_time() {
    let lab = Lab::builder().shape(Shape::Bridged).family(Family::Dual).build().unwrap();
    let node = lab.node(0);
    // A list of many messages takes a while.
    let neighbours = "for i in $(seq 2 99); do
            echo neigh replace 10.244.1.$i lladdr 02:00:00:00:00:01 nud stale dev cni0
            for j in $(seq 30); do
                echo neigh replace 10.99.$i.$j lladdr 02:00:00:00:00:01 nud permanent dev cni0
            done
        done | ip -batch -";
    let filled = node.exec(&["sh", "-c", neighbours], &[], SHORT).await.unwrap();
    assert!(filled.status.success(), "{}", String::from_utf8_lossy(&filled.stderr));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for number in 0..10 {
                    let pod = node.pod(&format!("pod-{thread}-{number}"));
                    pod.unwrap_or_else(|error| panic!("{thread}, {number}: {error:#}"));
                }
            });
        }
    });
    // The node had heard of another one at this address.
    let pods = node.pods();
    assert_eq!(pods.len(), 40);
    for pod in pods {
        ping(node, pod.address(), SHORT).await.unwrap_or_else(|error| panic!("{}: {error}", pod.address()));
    }
}

#[test]
fn addresses_are_handed_out_in_turn_until_none_is_left() {
    let lab = Lab::builder().build().unwrap();
    let mut seen = BTreeSet::new();
    for number in 0..30 {
        let pod = lab.node(0).pod(&format!("p{number}")).unwrap();
        assert!(seen.insert(pod.address()), "{} twice", pod.address());
        assert!(lab.node(0).pod_cidrs()[0].contains(pod.address()));
        pod.remove().unwrap();
    }
}

#[tokio::test]
async fn programs_in_pods_see_their_pod() {
    let lab = Lab::builder().family(Family::Dual).build().unwrap();
    let env = [("PAYMENT_SERVICE_HOST".to_owned(), "10.96.3.4".to_owned())];
    let pod = lab.node(0).add_pod(PodSpec::new("order").namespace("snackbar").env(env)).unwrap();
    let output = async |argv: &[&str]| {
        let output = pod.exec(argv, &[("MORE", "yes")], SHORT).await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let resolv = "nameserver 10.96.0.10\nnameserver fd00:96::a\n\
                  search snackbar.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";
    assert_eq!(output(&["cat", "/etc/resolv.conf"]).await, resolv);
    assert_ne!(fs::read_to_string("/etc/resolv.conf").unwrap(), resolv, "the machine's own file was changed");
    assert_eq!(output(&["sh", "-c", "echo $PAYMENT_SERVICE_HOST $MORE"]).await, "10.96.3.4 yes\n");
    let cgroup = lab.node(0).cgroup().file_name().unwrap().to_string_lossy().into_owned();
    assert!(output(&["cat", "/proc/self/cgroup"]).await.contains(&cgroup));
    let by_iproute = ["netns", "exec", pod.namespace().name(), "cat", "/etc/resolv.conf"];
    let by_iproute = Command::new("ip").args(by_iproute).output().unwrap();
    assert_eq!(String::from_utf8(by_iproute.stdout).unwrap(), resolv, "as ip netns exec shows it");
    let late = pod.exec(&["sleep", "60"], &[], Duration::from_millis(50)).await;
    assert!(late.unwrap_err().to_string().contains("longer than"));
    assert!(pod.exec(&["/no/such/program"], &[], SHORT).await.is_err());
    let process = pod.spawn(&["sleep", "60"], &[]).unwrap();
    assert!(process.exit_status().is_none());
    let pid = process.pid();
    drop(process);
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "a dropped process lives on");
}

#[tokio::test]
async fn sockets_stay_in_the_namespace_they_were_made_in() {
    let lab = Lab::builder().build().unwrap();
    let pod = lab.node(0).pod("web").unwrap();
    let address = SocketAddr::new(pod.address(), 9000);
    let listener = tokio::net::TcpListener::from_std(pod.namespace().tcp_listener(address).unwrap()).unwrap();
    let accepting = tokio::spawn(async move { listener.accept().await.map(|(_, peer)| peer.ip()) });
    tcp_connect(lab.node(0), address).await.unwrap();
    assert_eq!(accepting.await.unwrap().unwrap(), lab.node(0).address());
    let refused = tcp_connect(lab.node(0), address).await;
    assert_eq!(refused.err(), Some(NetError::Refused));
    assert!(std::net::TcpListener::bind(address).is_err(), "the pod's address exists outside the pod");
}

#[test]
fn nothing_is_left_after_the_end_also_not_after_a_panic() {
    let devices = || {
        let entries = fs::read_dir("/sys/class/net").unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<BTreeSet<_>>()
    };
    let before = devices();
    let build = || {
        let lab = Lab::builder().nodes(2).clients(1).shape(Shape::Bridged).build().unwrap();
        lab.node(0).pod("web").unwrap();
        fs::create_dir(lab.node(0).bpffs().join("maps")).unwrap();
        fs::create_dir(lab.node(0).cgroup().join("inner")).unwrap();
        let process = lab.node(0).spawn(&["sleep", "60"], &[], "sleep").unwrap();
        let prefix = lab.prefix().to_owned();
        // A namespace per node, pod and client and the switch; the pod's resolv.conf; a bpffs directory and a cgroup
        // per node; the state.
        assert_eq!(Lab::footprint(&prefix).len(), 5 + 1 + 2 + 2 + 1, "{:?}", Lab::footprint(&prefix));
        (lab, process, prefix)
    };
    let (lab, process, prefix) = build();
    drop((lab, process));
    assert_eq!(Lab::footprint(&prefix), Vec::<std::path::PathBuf>::new());
    let (lab, process, prefix) = build();
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let (_lab, _process) = (lab, process);
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert_eq!(Lab::footprint(&prefix), Vec::<std::path::PathBuf>::new());
    assert_eq!(devices(), before, "network devices of the machine itself");
}

/// Not a test by itself: the process whose leftovers `leftovers_of_a_killed_process_are_removed` looks at.
#[test]
#[ignore = "started as a process of its own by another test"]
fn leave_something_behind() {
    let Ok(mode) = std::env::var("LBT_LEAVE_BEHIND") else {
        panic!("this test is for being started by another one");
    };
    let lab = Lab::builder().build().unwrap();
    let pod = lab.node(0).pod("web").unwrap();
    let process = pod.spawn(&["sleep", "600"], &[]).unwrap();
    if mode == "keep" {
        lab.keep().unwrap();
    }
    println!("left {} {}", lab.prefix(), process.pid());
    std::process::abort();
}

/// Starts a process that is killed while its lab stands; returns the lab's prefix and the id of a process in it.
fn killed_lab(mode: &str) -> (String, u32) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "leave_something_behind", "--ignored", "--nocapture"])
        .env("LBT_LEAVE_BEHIND", mode)
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let words = text.lines().find_map(|line| Some(line.split_once("left ")?.1)).expect("its message");
    let (prefix, pid) = words.split_once(' ').unwrap();
    (prefix.to_owned(), pid.parse().unwrap())
}

fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn leftovers_of_a_killed_process_are_removed() {
    let living = Lab::builder().build().unwrap();
    let standing = Lab::footprint(living.prefix());

    let (kept, kept_pid) = killed_lab("keep");
    let (left, left_pid) = killed_lab("leave");
    assert!(!Lab::footprint(&left).is_empty());
    assert!(runs(left_pid));
    remove_leftovers();
    assert_eq!(Lab::footprint(&left), Vec::<std::path::PathBuf>::new());
    assert!(!runs(left_pid), "a process of a dead run lives on");
    assert!(!Lab::footprint(&kept).is_empty(), "a lab that was told to stand was removed");
    assert!(runs(kept_pid));
    assert_eq!(Lab::footprint(living.prefix()), standing, "a living run was touched");
    assert!(remove_kept().contains(&kept));
    assert_eq!(Lab::footprint(&kept), Vec::<std::path::PathBuf>::new());
    assert_eq!(Lab::footprint(living.prefix()), standing, "a living run was touched");
}

#[test]
fn a_node_of_two_pods_comes_up_fast() {
    let mut times = Vec::new();
    for shape in Shape::ALL {
        for family in Family::ALL {
            let begin = Instant::now();
            let lab = Lab::builder().shape(shape).family(family).build().unwrap();
            lab.node(0).pod("a").unwrap();
            lab.node(0).pod("b").unwrap();
            let up = begin.elapsed();
            let begin = Instant::now();
            drop(lab);
            println!(
                "{shape:?} {family:?}: one node, two pods up in {up:.1?}, down in {:.1?}",
                begin.elapsed()
            );
            times.push(up);
        }
    }
    let slowest = times.into_iter().max().unwrap();
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}
