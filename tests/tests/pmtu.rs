//! Path MTU discovery and ICMP errors through Services (S-71), with real sockets: applications learn what they would learn
//! without a Service in between, and see it in terms of the Service.

#[path = "pmtu/discovery.rs"]
mod discovery;
#[path = "pmtu/errors.rs"]
mod errors;
#[path = "pmtu/site.rs"]
mod site;
#[path = "pmtu/sockets.rs"]
mod sockets;
