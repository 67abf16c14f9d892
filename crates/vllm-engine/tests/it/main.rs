//! One binary for all integration tests of the crate.
#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod against_reference;
mod allocations;
mod eras;
mod fixtures;
mod hash;
mod latency;
mod loras;
mod models;
mod pressure;
mod reference;
mod steps;
mod trace_check;
