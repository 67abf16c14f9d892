//! Commands of the driver `e2e`, which starts the tutorial, runs its steps, checks its claims and reports.
//! The crates `lab`, `load` and `studies` do the work.

pub mod cli;

pub mod run;

pub mod commands;

pub mod follow;

pub mod overhead;

pub mod soak;
