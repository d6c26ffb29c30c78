//! The demo's story, every step of it, in both CNI shapes, both forwarding modes and all families.

use lb_tests::{
    cluster::Forwarding,
    demo::{self, Options, Teller},
    lab::{Family, Shape},
};

/// Plays the story and fails with everything that did not hold.
async fn holds(shape: Shape, forwarding: Forwarding, family: Family, nodes: u32) {
    let options = Options { nodes, forwarding, shape, family };
    let stage = demo::play(options, Teller::new()).await.expect("the cluster comes up");
    assert!(stage.teller.steps() >= 12 && stage.teller.checks() >= 35, "the story is not complete");
    assert!(stage.teller.failures().is_empty(), "{:#?}", stage.teller.failures());
}

macro_rules! every_step_holds {
    ($($name:ident: $shape:ident $forwarding:ident $family:ident $nodes:literal,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            holds(Shape::$shape, Forwarding::$forwarding, Family::$family, $nodes).await;
        }
    )*};
}

every_step_holds! {
    every_step_holds_routed_stack_v4: Routed Stack V4 2,
    every_step_holds_routed_stack_v6: Routed Stack V6 2,
    every_step_holds_routed_redirect_v4: Routed Redirect V4 2,
    every_step_holds_routed_redirect_v6: Routed Redirect V6 2,
    every_step_holds_bridged_stack_v4: Bridged Stack V4 2,
    every_step_holds_bridged_stack_v6: Bridged Stack V6 2,
    every_step_holds_bridged_redirect_v4: Bridged Redirect V4 2,
    every_step_holds_bridged_redirect_v6: Bridged Redirect V6 2,
    every_step_holds_dual_stack_on_three_nodes: Bridged Redirect Dual 3,
    every_step_holds_on_a_single_node: Routed Stack V4 1,
}
