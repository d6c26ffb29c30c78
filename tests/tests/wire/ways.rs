//! Flows that stand, but whose packets the program cannot bring where they belong: the stack's.

use lb_common::layout::{BackendFlags, Forwarding, FrontendKind};
use lb_tests::datapath::Program;
use lb_tests::datapath::case::Step;
use lb_tests::datapath::wire::Device;

use lb_tests::datapath::trip::{Trip, Way, on_wires, passes};

#[test]
fn devices_that_take_no_frames_get_none() {
    on_wires(|world, wires| {
        for way in Way::ALL {
            let trip = Trip::new(world, wires, FrontendKind::ExternalIp, way, 0)?;
            trip.stands(world)?;
            let request = trip.request(world);
            if !trip.is_served(world) {
                continue;
            }
            let others: Vec<Device> = Device::ALL.into_iter().filter(|it| *it != way.device()).collect();
            world.datapath.take_frames(&others)?;
            world.datapath.advance_epoch()?;
            passes(world, "its device takes none", &request.bytes())?;
            world.datapath.take_frames(&[way.device()])?;
            world.datapath.advance_epoch()?;
            world.always(&trip.goes("its device takes some", &request))?;
            if way != Way::Back {
                // The flow cache says yes, and the device is gone: seen before anything is rewritten.
                world.datapath.take_frames(&others)?;
                let gone = Step::untouched("its device is gone", Program::FromWire, &request.bytes());
                world.step(&gone)?;
            }
            world.datapath.take_frames(&Device::ALL)?;
        }
        Ok(())
    });
}

#[test]
fn where_no_route_or_no_neighbour_is_known_packets_pass() {
    on_wires(|world, wires| {
        let trip = Trip::new(world, wires, FrontendKind::NodePort, Way::Forward, 0)?;
        trip.stands(world)?;
        let (request, endpoint) = (trip.request(world), trip.journey.flow.endpoint.ip());
        world.always(&trip.goes("there is a way", &request))?;
        wires.lose(endpoint)?;
        wires.forbid(endpoint)?;
        world.datapath.advance_epoch()?;
        passes(world, "a route to nowhere", &request.bytes())?;
        wires.lose(endpoint)?;
        wires.lead_unknown(endpoint, Device::Two)?;
        world.datapath.advance_epoch()?;
        passes(world, "a neighbour that nobody knows", &request.bytes())?;
        wires.lose(endpoint)?;
        wires.lead(endpoint, Device::Two)?;
        world.datapath.advance_epoch()?;
        world.always(&trip.goes("there is a way again", &request))?;
        // The client's packets would not come by this device.
        wires.lead(trip.journey.flow.client.ip(), Device::Two)?;
        world.datapath.advance_epoch()?;
        passes(world, "a client of another device", &request.bytes())?;
        wires.lose(trip.journey.flow.client.ip())
    });
}

#[test]
fn a_node_that_does_not_forward_forwards_nothing() {
    on_wires(|world, wires| {
        let trip = Trip::new(world, wires, FrontendKind::NodePort, Way::Back, 0)?;
        trip.stands(world)?;
        let key = if world.v6 { "net/ipv6/conf/one/forwarding" } else { "net/ipv4/conf/one/forwarding" };
        wires.sysctl(key, "0")?;
        world.datapath.advance_epoch()?;
        passes(world, "no router", &trip.request(world).bytes())?;
        wires.sysctl(key, "1")?;
        if world.v6 {
            // The kernel forgets routes by the device when it becomes a host.
            wires.restore()?;
        }
        world.datapath.advance_epoch()?;
        world.always(&trip.goes("a router", &trip.request(world)))
    });
}

#[test]
fn endpoints_here_are_for_the_stack_unless_their_device_is_known() {
    on_wires(|world, wires| {
        let trip = Trip::new(world, wires, FrontendKind::NodePort, Way::Pod, 0)?;
        trip.stands(world)?;
        let request = trip.request(world);
        let serving = BackendFlags::SERVING;
        trip.place(world, serving | BackendFlags::LOCAL, 0)?;
        passes(world, "here, device not known", &request.bytes())?;
        trip.place(world, serving | BackendFlags::LOCAL, Device::Pod.index())?;
        if world.forwarding == Forwarding::Redirect {
            world.always(&trip.goes("here, device known", &request))?;
        } else {
            passes(world, "here, and the stack is to lead there", &request.bytes())?;
        }
        // Beyond: where the row says so, routes are believed.
        let far = Trip::new(world, wires, FrontendKind::NodePort, Way::Forward, 0)?;
        far.stands(world)?;
        far.place(world, serving | BackendFlags::NEIGHBOUR, Device::Two.index())?;
        let request = far.request(world);
        world.always(&far.goes("over the network card", &request))
    });
}
