//! The lab: a cluster, what it leaves as evidence, the scenarios that send and check, and the report.
//! It starts the other programs and speaks to them over their wires; it shares no code with them.

pub mod scenario;

pub mod journal;

pub mod flags;

pub mod ui;

pub mod report;

pub mod evidence;

pub mod cluster;

pub mod envoy_install;

pub mod guard;

pub mod requests;

pub mod conversation;

pub mod expectation;

pub mod check;
