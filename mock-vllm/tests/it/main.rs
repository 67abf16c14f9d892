//! One binary for all integration tests of the crate.
#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod cache_reading;
mod chat_templates;
mod check_trace;
mod cli;
mod debug_endpoints;
#[expect(dead_code, reason = "the tests of the engine itself use all of them")]
#[path = "../../../crates/vllm-engine/tests/it/fixtures.rs"]
mod engine_fixtures;
mod fastapi;
mod faults;
mod faults_crash;
mod faults_rules;
mod fuzz_corpus;
mod ground_truth;
mod kv_events;
mod kv_events_wire;
mod latency_flags;
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
mod python_clients;
mod render;
mod send_schedule;
mod server_anthropic;
mod server_chat;
mod server_choices;
mod server_config;
mod server_dev;
mod server_fixtures;
mod server_lifecycle;
mod server_logprobs;
mod server_lora;
mod server_responses;
mod server_sampling;
mod server_streams;
mod server_surface;
mod server_tools;
mod structured_schema;
mod structured_tools;
mod tutorial;
mod wire_versions;
