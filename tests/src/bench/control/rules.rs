//! The same Services as rules of the shape that kube-proxy writes, loaded into an empty network namespace.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tempfile::NamedTempFile;

use super::world::World;
use crate::netns::{Namespace, run_in};

/// Rules for so many Services with one endpoint each, in files.
pub(super) struct Rules {
    nft: NamedTempFile,
    iptables: NamedTempFile,
}

impl Rules {
    /// Writes the files.
    ///
    /// # Errors
    /// When that fails.
    pub(super) fn new(services: u32) -> Result<Self> {
        let file = |text: String| -> Result<NamedTempFile> {
            let mut file = NamedTempFile::with_prefix("lbt-rules")?;
            file.write_all(text.as_bytes())?;
            Ok(file)
        };
        let world = World { services, endpoints: 1, ..World::MANY };
        Ok(Self { nft: file(nft(world))?, iptables: file(iptables(world))? })
    }

    /// How long `nft -f` takes.
    ///
    /// # Errors
    /// When it is not installed, or the kernel refuses.
    pub(super) fn nft(&self) -> Result<Duration> {
        load("nft", &["-f"], self.nft.path())
    }

    /// How long `iptables-legacy-restore` takes.
    ///
    /// # Errors
    /// When it is not installed, or the kernel refuses.
    pub(super) fn iptables(&self) -> Result<Duration> {
        load("iptables-legacy-restore", &[], self.iptables.path())
    }
}

fn load(program: &str, arguments: &[&str], rules: &Path) -> Result<Duration> {
    let namespace = Namespace::create(&format!("lbt-rules-{}", std::process::id()), &[])?;
    let (took, output) = run_in(&namespace, || {
        let begin = Instant::now();
        let output = Command::new(program).args(arguments).arg(rules).output();
        (begin.elapsed(), output)
    });
    let output = output.with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(took)
}

/// kube-proxy's mode nftables: a map from addresses and ports to chains, a chain for each Service and each endpoint.
fn nft(world: World) -> String {
    let (mut chains, mut portals, mut addresses) = (String::new(), String::new(), String::new());
    for number in 0..world.services {
        let (vip, endpoint) = (World::cluster_ip(number), world.endpoint(number, 0, 0));
        // Writing to a string does not fail, here and below.
        let _ = writeln!(portals, "{vip} . tcp . 80 : goto service-{number},");
        let _ = writeln!(addresses, "{vip},");
        let _ = writeln!(
            chains,
            "chain endpoint-{number} {{\n ip saddr {endpoint} jump mark-for-masquerade\n meta l4proto tcp dnat to \
             {endpoint}:8080\n}}\nchain service-{number} {{\n ip daddr {vip} tcp dport 80 ip saddr != 10.244.0.0/16 jump \
             mark-for-masquerade\n numgen random mod 1 vmap {{ 0 : goto endpoint-{number} }}\n}}"
        );
    }
    format!(
        "table ip kube-proxy {{\nchain mark-for-masquerade {{ mark set mark or 0x4000; }}\n{chains}map service-ips {{\n type \
         ipv4_addr . inet_proto . inet_service : verdict\n elements = {{ {portals} }}\n}}\nset cluster-ips {{\n type \
         ipv4_addr\n elements = {{ {addresses} }}\n}}\nchain services {{\n ip daddr . meta l4proto . th dport vmap \
         @service-ips\n}}\nchain nat-prerouting {{\n type nat hook prerouting priority dstnat\n jump services\n}}\nchain \
         nat-output {{\n type nat hook output priority -100\n jump services\n}}\n}}\n"
    )
}

/// kube-proxy's mode iptables: a rule for each Service, a chain for each Service and each endpoint.
fn iptables(world: World) -> String {
    let (mut chains, mut portals, mut rules) = (String::new(), String::new(), String::new());
    for number in 0..world.services {
        let (vip, endpoint) = (World::cluster_ip(number), world.endpoint(number, 0, 0));
        let (own, leaf) = (format!("KUBE-SVC-{number}"), format!("KUBE-SEP-{number}"));
        let comment = format!("-m comment --comment \"default/service-{number}:http");
        let _ = write!(chains, ":{own} - [0:0]\n:{leaf} - [0:0]\n");
        let _ = writeln!(
            portals,
            "-A KUBE-SERVICES -d {vip}/32 -p tcp {comment} cluster IP\" -m tcp --dport 80 -j {own}"
        );
        let _ = write!(
            rules,
            "-A {own} ! -s 10.244.0.0/16 -d {vip}/32 -p tcp {comment} cluster IP\" -m tcp --dport 80 -j KUBE-MARK-MASQ\n\
             -A {own} {comment} -> {endpoint}:8080\" -j {leaf}\n-A {leaf} -s {endpoint}/32 {comment}\" -j \
             KUBE-MARK-MASQ\n-A {leaf} -p tcp {comment}\" -m tcp -j DNAT --to-destination {endpoint}:8080\n"
        );
    }
    format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n{chains}-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j \
         KUBE-SERVICES\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n{portals}{rules}COMMIT\n"
    )
}
