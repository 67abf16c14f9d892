//! The lab: a cluster, the evidence it leaves, scenarios that send requests and check them, and the report.
//! It starts the other programs, talks to them over the network, and uses no code of the picker or the mock server.

pub mod scenario;

pub mod in_flight;

pub mod journal;

pub mod session;

pub mod flags;

pub mod on;

pub mod ui;

pub mod report;

pub mod cluster;

pub mod envoy_install;

pub mod watchdog;

pub mod evidence;

pub mod doc;

pub mod requests;

pub mod conversation;

pub mod expectation;

pub mod check;

pub mod patience;

pub mod engine;
