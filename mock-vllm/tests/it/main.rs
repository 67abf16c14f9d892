//! One binary for all integration tests of the crate.

mod engine_fixtures;
mod engine_hash;
mod engine_latency;
mod engine_models;
mod engine_steps;
mod trace_check;
