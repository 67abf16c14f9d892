//! One binary for all integration tests of the crate.
#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod cli;
mod debug_endpoints;
mod engine_allocations;
mod engine_eras;
mod engine_fixtures;
mod engine_hash;
mod engine_latency;
mod engine_loras;
mod engine_models;
mod engine_pressure;
mod engine_steps;
mod fuzz_corpus;
mod ground_truth;
mod kv_events;
mod kv_events_wire;
mod load_tool;
mod metrics_fixtures;
mod metrics_http;
mod metrics_page;
mod metrics_python;
mod metrics_semantics;
mod oracle;
mod pods;
mod process;
mod python;
mod replies;
mod server_chat;
mod server_fixtures;
mod server_lifecycle;
mod server_surface;
mod structured_schema;
mod structured_tools;
mod tokens;
mod trace_check;
mod tutorial;
