//! The real agent on lab nodes, between a real API server and real traffic.

#[path = "agents/commands.rs"]
mod commands;
#[path = "agents/common.rs"]
mod common;
#[path = "agents/devices.rs"]
mod devices;
#[path = "agents/health.rs"]
mod health;
#[path = "agents/live.rs"]
mod live;
#[path = "agents/maglev.rs"]
mod maglev;
#[path = "agents/network.rs"]
mod network;
#[path = "agents/restart.rs"]
mod restart;
#[path = "agents/source.rs"]
mod source;
#[path = "agents/traffic.rs"]
mod traffic;
