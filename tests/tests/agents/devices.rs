//! Devices that go while they are seen to.

use lb_agent::dataplane::{AttachMode, Attacher, Datapath, LoadOptions, Pins, Role, Sizes};
use lb_common::layout::Forwarding as Mode;
use lb_tests::{
    cluster::Forwarding,
    lab::{Family, Node, Shape},
};

use crate::common::{index, ip, simple};

/// Makes a bridge without ports, and returns its index.
async fn bridge(node: &Node, name: &str) -> u32 {
    ip(node, &format!("link add {name} type bridge")).await;
    index(node, name).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_goes_is_no_trouble() {
    let cluster = simple(Family::V4, Shape::Routed, Forwarding::Stack, 0).await;
    let node = cluster.node(0).clone();
    cluster.agents()[0].sigkill();
    let pins = Pins::new(&cluster.bpf_root(&node));
    let options = LoadOptions {
        object: std::env::var_os("LB_EBPF_OBJECT").map(Into::into),
        sizes: Sizes::default(),
        forwarding: Mode::Stack,
        log: false,
        masquerade_ports: 1024..=32_767,
        echo_reply: false,
        sockets: None,
    };
    for mode in [AttachMode::Tcx, AttachMode::Tc] {
        let (goes, stays) = (bridge(&node, "goes").await, bridge(&node, "stays").await);
        let (pins, options, on) = (pins.clone(), options.clone(), node.clone());
        let seen_to = async move {
            let datapath = Datapath::load(&pins, &options).unwrap();
            let mut attacher = Attacher::new(&datapath, &pins, mode, on.namespace().netlink()).unwrap();
            for (index, name) in [(goes, "goes"), (stays, "stays")] {
                attacher.attach(index, name, Role::Pod).await.unwrap();
            }
            ip(&on, "link del goes").await;
            let repaired = attacher.repair().await;
            let again = attacher.attach(goes, "goes", Role::Pod).await.unwrap_err();
            (repaired, again)
        };
        let (repaired, again) = node.namespace().block_on(seen_to);
        assert_eq!(repaired.unwrap(), [], "{mode:?}: what stays has all it needs");
        assert!(again.is_of_a_gone_device(), "{mode:?}: {again:?}");
        ip(&node, "link del stays").await;
    }
}
