//! The real agent on lab nodes, between a real API server and real traffic.

#[path = "agents/commands.rs"]
mod commands;
#[path = "agents/common.rs"]
mod common;
#[path = "agents/restart.rs"]
mod restart;
#[path = "agents/source.rs"]
mod source;
#[path = "agents/traffic.rs"]
mod traffic;
