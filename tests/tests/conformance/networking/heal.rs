//! What a Service needs in the kernel is taken away by somebody else, and comes back. Upstream deletes the proxy's iptables
//! rules; here it is programs that are detached and pins that are removed.

use std::{fs, io::ErrorKind, path::PathBuf, process::Command};

use crate::prelude::*;

/// The titles.
pub(super) fn titles() -> Vec<Title> {
    vec![
        Title::new("should recreate its iptables rules if they are deleted [Disruptive]", heals)
            .alone(|builder| builder),
    ]
}

/// Agents look once a second; upstream allows 45 seconds.
const HEALED: Duration = Duration::from_secs(3);

async fn heals(case: Case) -> Result<()> {
    let service = case.service("web", json!({"type": "NodePort"}))?;
    let backend = case.backend("web", 1).await?;
    let pod = case.pod("client", 0).await?;
    let (cluster, node_port) = (service.cluster(80)?, service.node(case.node_ip(0)?, 80)?);
    let ways = [
        (pod.caller().clone(), cluster),
        (pod.caller().clone(), node_port),
        (case.host(0), cluster),
        (case.outside(0), node_port),
    ];
    for (caller, to) in &ways {
        case.comes_to_reach(caller, *to, Protocol::Tcp, &[backend.name()]).await?;
    }
    let stream = pod.http_flow(cluster).await?;
    let answered = stream.get("/hostname").await?;
    for remove_pins in [false, true] {
        for pin in pins(&case)? {
            let output = Command::new("bpftool").args(["link", "detach", "pinned"]).arg(&pin).output();
            let output = output.context("bpftool: `cargo xtask setup` installs it")?;
            ensure!(
                output.status.success(),
                "{}: {}",
                pin.display(),
                String::from_utf8_lossy(&output.stderr)
            );
            if remove_pins {
                match fs::remove_file(&pin) {
                    // The agent mends it already, which begins with that.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    removed => removed.with_context(|| format!("removing {}", pin.display()))?,
                }
            }
        }
        let begin = Instant::now();
        for (caller, to) in &ways {
            loop {
                let answer = caller.within(Duration::from_millis(50)).hostname(*to).await;
                if answer.as_deref() == Ok(backend.name()) {
                    break;
                }
                let elapsed = begin.elapsed();
                ensure!(elapsed < HEALED, "{} at {to} after {elapsed:.1?}: {answer:?}", caller.name());
            }
        }
        println!(
            "programs of a node detached, {}: served again after {:.0?}",
            case.variant(),
            begin.elapsed()
        );
        // And all of it: new endpoints, too.
        for (caller, to) in &ways {
            case.stays("the Service", 5, async || caller.hostname(*to).await, is(backend.name())).await?;
        }
        ensure!(stream.get("/hostname").await? == answered, "the open connection went to another pod");
        ensure!(!pins(&case)?.is_empty(), "the links are not pinned again");
    }
    Ok(())
}

/// The pinned links of the first node.
fn pins(case: &Case) -> Result<Vec<PathBuf>> {
    let directory = case.cluster().bpf_root(case.node(0)).join("links");
    let entries = fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))?;
    let pins = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    ensure!(!pins.is_empty(), "no link is pinned in {}", directory.display());
    Ok(pins)
}
