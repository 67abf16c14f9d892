//! The lab: stands the tutorial up, runs its steps, asserts what it claims and reports.
//! It starts the other programs and speaks to them over their wires; it shares no code with them.

pub mod cluster;
pub mod envoy_install;
pub mod guard;

pub mod evidence;

pub mod load;

pub mod check;

pub mod conversation;

pub mod expectation;

pub mod stats;

pub mod clock;
