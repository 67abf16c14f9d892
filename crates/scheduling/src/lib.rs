//! Pure picking policy: filters, scorers and the decision as a value.
//!
//! Candidates and their loads come in, a decision with its reason goes out. No I/O, no clock, no async; randomness is
//! an argument.

pub mod pick;

pub mod saturation;

pub mod standings;

mod filter;

pub mod affinity;

pub mod candidate;
