//! The source against an API server that speaks list and watch, and the mapping of pods.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod api_server;
mod pods;
mod source;
