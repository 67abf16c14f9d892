//! The lab: stands the tutorial up, runs its steps, checks its claims and reports.
//! It starts the other programs and talks to them over the network, and shares no code with them. Only the studies
//! (step5, compare, sweep, calibrate) run their code, in the simulator.

pub mod cli;

pub mod run;

pub mod commands;

pub mod follow;

pub mod overhead;

pub mod soak;

pub mod step5;

pub mod compare;

pub mod sweep;

pub mod calibrate;

pub mod scenario;

pub mod journal;

pub mod ui;

pub mod cluster;
pub mod envoy_install;
pub mod guard;

pub mod report;

pub mod requests;

pub mod conversation;

pub mod expectation;

pub mod evidence;

pub mod load;

pub mod check;

pub mod multi_round_qa;

pub mod stats;

pub mod rows;

pub mod interrupt;

pub mod clock;
