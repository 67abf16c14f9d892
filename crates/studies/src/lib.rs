//! Studies in virtual time: the tutorial's published table, policies compared, one setting swept, a GPU's constants fitted.
//! The only crate of the driver that sees the simulator.

pub mod sweep;

pub mod step5;

pub mod compare;

pub mod calibrate;
