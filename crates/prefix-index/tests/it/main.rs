//! Behaviour of the prefix index at its boundary.

mod blocks;
mod concurrency;
mod fixtures;
mod memory;
mod model;
mod schedule;
mod tutorial;
mod usage;
