//! Tests of the prefix index through its public interface.

mod blocks;
mod bounds;
mod concurrency;
mod fixtures;
mod memory;
mod model;
mod schedule;
mod tutorial;
mod usage;
