//! Tests of the crate through its public interface.

mod awaited;
mod doubts;
mod quiet;
