//! The lab: stands the tutorial up, runs its steps, asserts what it claims and reports.
//! It starts the other programs and speaks to them over their wires; it shares no code with them.

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
