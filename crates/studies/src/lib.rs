//! Studies: reproduce the tutorial's published table, compare policies, change one setting, and fit a GPU's constants.
//! All run in virtual time; the table is also checked with real programs.
//! No other crate of the driver may use the simulator.

pub mod cli;

pub mod sweep;

pub mod step5;

pub mod compare;

pub mod calibrate;
