//! The extension server over gRPC, and the rules behind it.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

mod api_server;
mod fixtures;
mod hooks;
mod kind;
mod objects;
mod pickers;
mod plan;
mod probes;
mod process;
mod resolve;
mod status;
mod facts;
