//! Agents that are started again with other flags, and with flags that make no sense.

use lb_tests::{
    cluster::Forwarding,
    lab::{AgentOptions, Family},
};

use crate::common::{SECONDS, Site, attached, builder};
use crate::traffic::Traffic;

/// The options with these flags in the place of what they said of them.
fn with(options: &AgentOptions, flags: &[&str]) -> AgentOptions {
    let mut options = options.clone();
    for flag in flags {
        let name = flag.split('=').next().unwrap();
        options.args.retain(|argument| argument.split('=').next() != Some(name));
        options.args.push((*flag).to_owned());
    }
    options
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_with_other_flags_is_not_noticed() {
    let mut site = Site::start(builder(1, Family::Dual, Forwarding::Stack), 2).await;
    site.warm_up().await;
    let node = site.cluster.node(0).clone();
    let options = site.cluster.agent_options(&node).unwrap();
    let programs = attached(&node).await;
    assert!(programs.len() == 2 * (1 + 3) && programs.values().all(|times| *times == 1), "{programs:?}");
    let traffic = Traffic::start(&site.ways(), 60, 60).await;
    assert!(site.cluster.agent(0).sigterm().await.unwrap().success());
    for flags in [
        &["--forwarding=redirect"][..],
        &["--forwarding=redirect", "--attach=tc"],
        &["--attach=tc", "--socket-lb=off"],
        &["--socket-lb=all", "--masquerade-ports=2048-16383"],
        // Tables that exist keep their sizes.
        &["--max-services=2048", "--max-connections=131072", "--metrics-detail=endpoints", "--echo-reply"],
        &["--node-port-addresses=primary", "--udp-timeout=20"],
    ] {
        let agent = node.start_agent(with(&options, flags)).unwrap();
        agent.wait_ready().await.unwrap();
        traffic.pulse().await;
        assert_eq!(attached(&node).await, programs, "{flags:?}");
        assert!(agent.sigterm().await.unwrap().success(), "{flags:?}");
        println!(
            "restarted with {}, slowest new connection until now {:.0?}",
            flags.join(" "),
            traffic.slowest()
        );
    }
    // Flags that make no sense: it says so, ends, and has touched nothing.
    for (flags, word) in [
        (&["--attach=glue"][..], "glue"),
        (&["--masquerade-ports=9-8"], "9-8"),
        (&["--max-connections=7"], "--max-connections"),
    ] {
        let wrong = with(&options, flags);
        let args: Vec<&str> = wrong.args.iter().map(String::as_str).collect();
        let output = node.agent_command(&args, SECONDS).await.unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{error}");
        assert!(error.contains(word), "{error}");
        assert_eq!(attached(&node).await, programs, "{flags:?}");
    }
    traffic.pulse().await;
    traffic.stop().await.nobody_noticed("six restarts with other flags and three that failed");
}
