//! The driver's commands: `e2e` stands the tutorial up, runs its steps, asserts what it claims and reports.
//! The crates `lab` and `load` do the work; the program `studies` is started for what needs the simulator.

pub mod cli;

#[cfg(feature = "kubernetes")]
pub mod kubernetes;

pub mod run;

pub mod commands;

pub mod explain;

pub mod follow;

pub mod overhead;

pub mod soak;

pub mod study;

pub mod on;
