//! The tools of a person on call: what they say, held against what then happens.

#[path = "agents/common.rs"]
#[allow(dead_code, reason = "shared with the tests of agents, which use all of it")]
mod common;
#[path = "oncall/docs.rs"]
mod docs;
#[path = "oncall/explain.rs"]
mod explain;
#[path = "oncall/status.rs"]
mod status;
