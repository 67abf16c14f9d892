//! Tests of the scanners and of what requests are read into.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod body;
mod prompts;
mod subset;
